"""``hgnetv2-hf demo DIR…``: a page to try models, or a Hugging Face Space of it."""

import argparse

from ._framework import add_command, fail, positive_integer


def add(commands):
    parser = add_command(commands, "demo", "Serve a page to try classifiers and detectors beside each other.")
    parser.add_argument(
        "models", nargs="+", metavar="DIR", help="a model's folder or repository, or a folder of `export`"
    )
    parser.add_argument(
        "--examples", nargs="+", default=[], metavar="IMAGE", help="files, folders or globs to choose from"
    )
    parser.add_argument("--host", metavar="ADDRESS", help="to listen on (default: this machine alone)")
    parser.add_argument("--port", type=_port, metavar="N", help="default: the first free one from 7860")
    parser.add_argument("--space", metavar="FOLDER", help="write a Hugging Face Space instead of serving")
    parser.add_argument("--push-to-hub", metavar="REPO_ID", help="upload it to this Space, user/name")
    parser.add_argument("--private", action="store_true", help="create the Space private")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing Space's folder")
    return parser


def _port(text):
    value = positive_integer(text)
    if value > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 1 to 65535")
    return value


def run(arguments):
    if arguments.space is None:
        from ..demo.page import serve

        if arguments.push_to_hub or arguments.private or arguments.overwrite:
            return fail("--push-to-hub, --private and --overwrite belong to --space.", 2)
        serve(arguments.models, arguments.examples, arguments.host, arguments.port)
        return None
    from ..demo.space import write_space

    write_space(
        arguments.models, arguments.space, arguments.examples, arguments.overwrite, arguments.push_to_hub,
        arguments.private,
    )  # fmt: skip
    return None
