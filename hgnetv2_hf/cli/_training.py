"""
What `train` and `train-detector` share: one parser takes this package's options, a field of an options class each, and
those of `TrainingArguments`.

Those come from Transformers' `HfArgumentParser`. This package's do not: it would offer ``--check``, ``--check BOOL``
and ``--crop_scale`` beside the names that are documented, and has no pair of numbers; and without it ``train --help``
needs no import of seconds.
"""

import argparse
import dataclasses
import typing

from ..training.options import value_type
from ._framework import positive_integer, probability


CONTINUES = "; the same command continues after the last checkpoint"

_RANGES = {"positive": positive_integer, "probability": probability}
_BOOLEANS = {"yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"}  # as `HfArgumentParser` takes them


def parse(strings, options, data_help, model_help, **parser_options):
    """
    The arguments of the command: `data`, `model`, `output`, `overwrite`, every option, and what else was given.

    Args:
        strings (`list[str]`)
        options (type): a class of options.
        data_help, model_help (`str`)
        parser_options: of `ArgumentParser`.
    """
    parser_options = {
        **parser_options,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,  # what is short for one option only would depend on the version of Transformers
    }
    if {"-h", "--help"} & {*strings}:
        parser, flags = argparse.ArgumentParser(**parser_options), set()
    else:
        parser, flags = _parser_of_training_arguments(parser_options)
    parser.add_argument("data", metavar="DATA", help=data_help)
    parser.add_argument("--model", required=True, metavar="DIR", help=model_help)
    parser.add_argument("--output", required=True, metavar="OUT", help="the folder to write")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an existing folder, or another interrupted run"
    )
    for field in dataclasses.fields(options):
        _add_option(parser, field)
    arguments = parser.parse_args(_with_values(strings, flags))
    if "output_dir" in arguments:
        parser.error("--output names the folder")
    return arguments


def call(function, options, arguments):
    """Calls `train` or its like with what `parse` found."""
    given = dict(vars(arguments))
    chosen = options(**{field.name: given.pop(field.name) for field in dataclasses.fields(options)})
    data, model, output, overwrite = (given.pop(name) for name in ("data", "model", "output", "overwrite"))
    return function(data, model, output, chosen, overwrite, **given)


def _parser_of_training_arguments(parser_options):
    """A parser that keeps what is given of `TrainingArguments`, and those of its flags that take a value too (``--bf16
    false``)."""
    from transformers import HfArgumentParser, TrainingArguments
    from transformers.hf_argparser import string_to_bool

    parser = HfArgumentParser(TrainingArguments, **parser_options, conflict_handler="resolve")
    flags = set()
    for action in parser._actions:
        if action.dest != "help":
            action.default, action.required, action.help = argparse.SUPPRESS, False, argparse.SUPPRESS
        if action.type is string_to_bool:  # not `--fsdp` of 5.x, whose value is text
            flags.update(action.option_strings)
    return parser, flags


def _with_values(strings, flags):
    """``--bf16 DATA`` as ``--bf16 true DATA``: `argparse` would take DATA for the value of the flag."""
    strings = list(strings)
    for string, following in zip(strings, [*strings[1:], ""]):
        yield string
        if string in flags and following.lower() not in _BOOLEANS:
            yield "true"


def _add_option(parser, field):
    """A field as an option of the command line; one that is `True` by default as the flag that turns it
    off."""
    name, metadata = field.name.replace("_", "-"), field.metadata
    common = {"dest": field.name, "default": field.default, "help": metadata["help"]}
    if field.type is bool and field.default:
        parser.add_argument(metadata.get("flag", f"--no-{name}"), action="store_false", **common)
    elif field.type is bool:
        parser.add_argument(f"--{name}", action="store_true", **common)
    else:
        kind = value_type(field)
        nargs = {list: "+", tuple: len(typing.get_args(kind))}.get(typing.get_origin(kind))
        element = typing.get_args(kind)[0] if nargs else kind
        parser.add_argument(
            f"--{name}",
            type=_RANGES.get(metadata.get("range"), element),
            nargs=nargs,
            choices=metadata.get("choices"),
            metavar=metadata.get("metavar"),
            **common,
        )
