"""
What the commands of ``hgnetv2-hf`` share. A command is a module beside this one, named in `COMMANDS` of ``__init__``,
with

- ``add(commands)``: adds the command's parser to the others, and returns it;
- ``run(arguments)``: does it; returns the exit status, or `None` for 0. Imports that cost seconds stand in there;
- ``parse(strings)``, *optional*: parses the command's own arguments where its parser takes seconds of imports too;
- ``CONTINUES``, *optional*: what a person is told who interrupts it.
"""

import argparse
import contextlib
import signal
import sys
import threading
import warnings

from ..model.variants import ALL_VARIANTS, canonical_name


_PACKAGE = __package__.partition(".")[0]


def add_command(commands, name, help, **options):
    """The parser of a command, whose one line of help is its description too; ``options`` are those of
    `ArgumentParser`."""
    return commands.add_parser(name, help=help, description=help, **options)


def add_batch_arguments(parser, batch_size, threads):
    """``--batch-size``, ``--workers``, ``--device`` and ``--overwrite`` of a command that writes a folder about many
    images; ``threads`` says what the workers do."""
    parser.add_argument(
        "--batch-size", type=positive_integer, default=batch_size, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--workers", type=positive_integer, metavar="N", help=f"threads that {threads} (default: one per core)"
    )
    parser.add_argument("--device", metavar="DEVICE", help="default: the GPU, if there is one")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder of this command")


def add_source_arguments(parser):
    """PATH…, ``--image-column`` and ``--engine`` of a command that takes images wherever they lie."""
    parser.add_argument(
        "paths", nargs="+", metavar="PATH",
        help="files, folders or globs, here or of a URL (s3://, gs://, hf://); Parquet files; WebDataset's tars",
    )  # fmt: skip
    parser.add_argument(
        "--image-column", metavar="NAME", help="of Parquet files (default: the only one that holds images)"
    )
    parser.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="this machine, or a Ray cluster: that of RAY_ADDRESS, or one on this machine (default: %(default)s)",
    )


def variant(text):
    """The type of a variant's name, aliases included."""
    try:
        return canonical_name(text, ALL_VARIANTS)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def positive_integer(text):
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return value


def probability(text):
    """0 included, 1 not."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a probability of at least 0 and below 1")
    return value


def fail(message, status=1):
    """Prints the one line that says why a command ends; returns its exit status."""
    print(f"hgnetv2-hf: {message}", file=sys.stderr)
    return status


@contextlib.contextmanager
def ends_at_sigterm():
    """SIGTERM and SIGHUP as exceptions, so that unfinished folders are removed; afterwards as it was."""
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handled = [each for each in signals if signal.getsignal(each) not in (signal.SIG_IGN, None)]  # as nohup lets it
    before = {each: signal.signal(each, _end_at) for each in handled}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _end_at(number, frame):
    sys.exit(fail(f"ended by {signal.Signals(number).name}."))


@contextlib.contextmanager
def warnings_in_one_line():
    """This package's own warnings in one line; others as Python shows them."""

    def show(message, category, filename, lineno, file=None, line=None):
        if category.__module__.partition(".")[0] == _PACKAGE:
            fail(message)
        else:
            sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
