"""
``hgnetv2-hf train DATA --model DIR --output OUT``.

One parser takes this package's options, a field of `Options` each, and those of `TrainingArguments`. Those come from
Transformers' `HfArgumentParser`. This package's do not: it would offer ``--check``, ``--check BOOL`` and
``--crop_scale`` beside the names that are documented, and has no pair of numbers; and without it ``train --help``
needs no import of seconds.
"""

import argparse
import dataclasses
import os
import typing

from ..training.options import Options, by_recipe, value_type
from ..training.recipe import MOMENTUM, TRAINING_ARGUMENTS, WEIGHT_DECAY
from ._framework import add_command, positive_integer, probability


CONTINUES = "; the same command continues after the last checkpoint"

_HELP = "Train or fine-tune a classifier; every option of TrainingArguments works too."
_EPILOG = f"""\
of TrainingArguments (python -c "import transformers; help(transformers.TrainingArguments)"), most wanted:
  --num_train_epochs N               {by_recipe("epochs")}
  --per_device_train_batch_size N    {by_recipe("batch_size")}
  --learning_rate X                  printed before training starts; grows with the batch size
  --optim NAME                       {TRAINING_ARGUMENTS["optim"]} (with momentum {MOMENTUM}); adamw_torch, …
  --weight_decay X                   {WEIGHT_DECAY["sgd"]} with sgd, else {WEIGHT_DECAY["other"]}
  --max_steps N                      instead of epochs
  --seed N                           42
  --bf16, --gradient_checkpointing, --gradient_accumulation_steps N, --use_cpu, --report_to tensorboard
  --push_to_hub, --hub_model_id USER/NAME"""
_PARSER = {
    "prog": "hgnetv2-hf train",
    "description": _HELP,
    "epilog": _EPILOG,
    "formatter_class": argparse.RawDescriptionHelpFormatter,
    "allow_abbrev": False,  # what is short for one option only would depend on the version of Transformers
}
_RANGES = {"positive": positive_integer, "probability": probability}
_BOOLEANS = {"yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"}  # as `HfArgumentParser` takes them


def add(commands):
    return add_command(commands, "train", _HELP, add_help=False)  # `parse` has the arguments


def parse(strings):
    """The arguments of the command: `data`, `model`, `output`, `overwrite`, every option, and what else was given."""
    if {"-h", "--help"} & {*strings}:
        parser, flags = argparse.ArgumentParser(**_PARSER), set()
    else:
        parser, flags = _parser_of_training_arguments()
    _add_arguments(parser)
    arguments = parser.parse_args(_with_values(strings, flags))
    if "output_dir" in arguments:
        parser.error("--output names the folder")
    return arguments


def run(arguments):
    from ..training import train

    given = dict(vars(arguments))
    options = Options(**{field.name: given.pop(field.name) for field in dataclasses.fields(Options)})
    data, model, output, overwrite = (given.pop(name) for name in ("data", "model", "output", "overwrite"))
    result = train(data, model, output, options, overwrite, **given)
    if int(os.environ.get("RANK", 0)) == 0:
        print(result)


def _parser_of_training_arguments():
    """A parser that keeps what is given of `TrainingArguments`, and those of its flags that take a value too (``--bf16
    false``)."""
    from transformers import HfArgumentParser, TrainingArguments
    from transformers.hf_argparser import string_to_bool

    parser = HfArgumentParser(TrainingArguments, **_PARSER, conflict_handler="resolve")
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


def _add_arguments(parser):
    parser.add_argument(
        "data", metavar="DATA", help="a folder with a folder per class, a name for `datasets`, or digits"
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="a classifier's folder or repository, a weight file, a published name, or a variant, which starts afresh",
    )
    parser.add_argument("--output", required=True, metavar="OUT", help="the folder to write")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an existing folder, or another interrupted run"
    )
    for field in dataclasses.fields(Options):
        _add_option(parser, field)


def _add_option(parser, field):
    """A field of [`Options`] as an option of the command line; one that is `True` by default as the flag that turns it
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
