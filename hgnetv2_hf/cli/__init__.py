"""The command line, ``hgnetv2-hf``. Exit status: 0 done, 1 could not be done, 2 wrong usage."""

import argparse
import os
import sys

from .. import __version__
from ..errors import HGNetV2Error
from ..wording import sentence
from . import (
    benchmark,
    classify,
    convert,
    demo,
    detect,
    embed,
    evaluate,
    explain,
    export,
    export_weights,
    listing,
    quickstart,
    run,
    train,
    train_detector,
)
from ._framework import ends_at_sigterm, fail, warnings_in_one_line


COMMANDS = (
    quickstart, listing, convert, export_weights, classify, embed, detect, explain, evaluate, export, benchmark, train,
    train_detector, demo, run,
)  # fmt: skip


def main(argv=None) -> int:
    """Runs one command; returns its exit status. Wrong usage raises `SystemExit`, as `argparse` does."""
    command, arguments = _parse(argv)
    try:
        with ends_at_sigterm(), warnings_in_one_line():
            return command.run(arguments) or 0
    except KeyboardInterrupt:
        return fail(f"interrupted{getattr(command, 'CONTINUES', '')}.")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except HGNetV2Error as error:
        return fail(sentence(error))
    except OSError as error:
        if command is run:  # the script's own
            raise
        return fail(sentence(error))


def _parse(argv):
    """The command's module and its arguments."""
    parser = argparse.ArgumentParser(prog="hgnetv2-hf", description="PP-HGNetV2 for Hugging Face Transformers.")
    parser.add_argument("--version", action="version", version=f"hgnetv2-hf {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands).set_defaults(command=command)
    arguments, rest = parser.parse_known_args(argv)
    command = vars(arguments).pop("command")
    if hasattr(command, "parse"):
        return command, command.parse(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return command, arguments
