"""All published classifiers of PaddleClas in one go."""

import argparse
import os
import sys

from tqdm.auto import tqdm

from ..conversion.convert import convert_checkpoint
from ..errors import HGNetV2Error
from ..hub.published import PADDLECLAS_URL, PUBLISHED
from ..hub.upload import check_repository, push_folder
from .convert import add_push_arguments


def convert_all(
    output_dir, push_to_hub=None, private=False, create_pr=False, overwrite=False, verify=False, show=print
):
    """
    Converts PaddleClas's published classifiers into one folder each, and uploads them if asked to.

    A folder that is there already is kept and, if asked to, uploaded; one checkpoint that fails does not stop the
    others.

    Args:
        output_dir (`str` or `os.PathLike`): holds one folder per checkpoint, named like it.
        push_to_hub (`str`, *optional*): a user or an organisation, which gets one repository per checkpoint.
        private, create_pr, overwrite, verify (`bool`): as in [`convert_checkpoint`].
        show (callable, defaults to `print`): receives each line of text.

    Returns:
        `list[str]`: the names that failed.
    """
    names = [name for name, row in PUBLISHED.items() if (row.url or "").startswith(PADDLECLAS_URL)]
    if push_to_hub is not None:
        check_repository(f"{push_to_hub}/{names[0]}")
    failed = []
    with tqdm(names, desc="checkpoints", unit="checkpoint") as progress:
        for name in progress:
            progress.set_postfix_str(name)
            folder = os.path.join(output_dir, name)
            repo_id = f"{push_to_hub}/{name}" if push_to_hub is not None else None
            try:
                if os.path.isfile(os.path.join(folder, "config.json")) and not overwrite:
                    done = f"{folder} is there already"
                    if repo_id is not None:
                        done += f"; pushed to {push_folder(folder, repo_id, private, create_pr)}"
                else:
                    options = {"push_to_hub": repo_id, "private": private, "create_pr": create_pr}
                    done = str(convert_checkpoint(name, folder, overwrite=overwrite, verify=verify, **options))
                show(done)
            except HGNetV2Error as error:
                failed.append(name)
                print(f"{name}: {error}", file=sys.stderr)
    show(f"{len(names) - len(failed)} of {len(names)} done")
    return failed


def main(argv=None):
    """The command line of ``conversion_scripts/convert_all_paddleclas.py``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output_dir", metavar="OUT", help="one folder per checkpoint is written in here")
    add_push_arguments(parser, "ORG", "upload each folder to a repository of this user or organisation")
    parser.add_argument("--overwrite", action="store_true", help="convert again what is there already")
    parser.add_argument("--verify", action="store_true", help="run the original program on each, if it is installed")
    try:
        return 1 if convert_all(**vars(parser.parse_args(argv))) else 0
    except HGNetV2Error as error:
        print(f"convert_all_paddleclas: {error}", file=sys.stderr)
        return 1
