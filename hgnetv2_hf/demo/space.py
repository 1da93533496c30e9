"""The page as a folder that runs as a Hugging Face Space (SDK: Gradio)."""

import importlib.metadata
import os
import shutil
from pathlib import Path

from huggingface_hub import SpaceCardData
from packaging.requirements import Requirement

from ..errors import InferenceError, raised_as
from ..files.atomic import atomic_folder, claim
from ..files.images import find_images, printable_path
from ..hub.upload import check_repository, push_folder
from ..inference.predictors import recognise
from ..wording import counted, printable
from .page import import_gradio


_PACKAGE = Path(__file__).parents[1]
_MARKER = f"{_PACKAGE.name}/demo/space.py"  # no other folder that has an `app.py` is replaced
_NOT_COPIED = shutil.ignore_patterns(".*", "checkpoint-*", "runs", "*.pt", "*.pth", "training_args.bin")
_APP = '''"""Written by `hgnetv2-hf demo --space`."""

import os
from pathlib import Path

from hgnetv2_hf.demo.page import serve


os.chdir(Path(__file__).parent)
serve({models!r}, examples={examples!r})
'''


@raised_as(InferenceError)
def write_space(models, output_dir, examples=(), overwrite=False, push_to_hub=None, private=False, show=print):
    """
    Writes `app.py`, the requirements, the card, this package's code, the models that are folders (without hidden files
    and what a training keeps for itself), and the examples.

    Args:
        models, examples: as in [`serve`]; a repository is named, and downloaded where the Space runs.
        output_dir (`str` or `os.PathLike`): the folder to write; complete or absent.
        overwrite (`bool`, defaults to `False`): replace a folder that an earlier call wrote.
        push_to_hub (`str`, *optional*): the Space that the folder is then uploaded to, `"user/name"`.
        private (`bool`, defaults to `False`): create that Space private.
        show (callable, defaults to `print`): receives the summary.

    Raises:
        `InferenceError`: there is no such model or image, Gradio is missing, or the folder cannot be written.
        `HubError`: the upload failed; the folder is complete.
    """
    version = import_gradio().__version__
    if push_to_hub is not None:
        check_repository(push_to_hub)
    recognised = [recognise(model) for model in models]
    folders = [model for model in models if os.path.isdir(model)]
    for folder in folders:
        if Path(output_dir).resolve().is_relative_to(Path(folder).resolve()):
            raise InferenceError(f"{output_dir} lies in the folder of the model {folder}; choose another place.")
        if printable(os.fspath(folder)) != os.fspath(folder):
            raise InferenceError(f"The name of {printable_path(folder)} is no UTF-8, which a Space cannot have.")
    images = list(find_images(examples)) if examples else []
    with claim(output_dir, [*folders, *images], overwrite, _MARKER), atomic_folder(output_dir) as folder:
        shutil.copytree(_PACKAGE, folder / _PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "pictures"))
        names = [_copy(model, folder, "models") if os.path.isdir(model) else str(model) for model in models]
        for image in images:
            _copy(image, folder, "examples")
        app = _APP.format(models=names, examples=["examples"] if images else [])
        (folder / "app.py").write_text(app, encoding="utf-8")
        runtimes = {each.runtime for each in recognised}
        (folder / "requirements.txt").write_text("\n".join(_requirements(runtimes)) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_card(version, names), encoding="utf-8")
    show(f"a Space with {counted(len(models), 'model')} -> {output_dir}")
    if push_to_hub is not None:
        show(f"pushed to {push_folder(output_dir, push_to_hub, private, space_sdk='gradio')}")


def _copy(source, folder, kind):
    """Copies a file or a folder, under a name that no other has; returns where it lies in ``folder``."""
    source = Path(source).absolute()
    (folder / kind).mkdir(exist_ok=True)
    target, number = folder / kind / source.name, 2
    while target.exists():
        target, number = target.with_name(f"{source.stem}-{number}{source.suffix}"), number + 1
    try:
        shutil.copytree(source, target, ignore=_NOT_COPIED) if source.is_dir() else shutil.copyfile(source, target)
    except shutil.Error as error:
        name, _, reason = error.args[0][0]
        raise InferenceError(f"Cannot copy {printable_path(name)}: {reason}.") from error
    return target.relative_to(folder).as_posix()


def _requirements(runtimes):
    """Those of this package and of the runtimes (its extras have their names); Gradio comes with the Space."""
    for text in importlib.metadata.requires("hgnetv2-hf"):
        requirement = Requirement(text)
        marker, requirement.marker = requirement.marker, None
        if marker is None or any(marker.evaluate({"extra": runtime}) for runtime in runtimes):
            yield str(requirement)


def _card(version, names):
    repositories = [name for name in names if not name.startswith("models/")]
    data = SpaceCardData(
        title="PP-HGNetV2", sdk="gradio", sdk_version=version, app_file="app.py", license="apache-2.0",
        models=repositories or None,
    )  # fmt: skip
    lines = [
        "---", data.to_yaml(), "---", "", "# PP-HGNetV2", "",
        "Models beside each other, where they look, and how long they take:", "",
        *[f"- {name}" for name in names], "",
        "Uploads are removed after minutes. `python app.py` runs it elsewhere, where `requirements.txt` and "
        f"`gradio=={version}` are installed.", "",
    ]  # fmt: skip
    return "\n".join(lines)
