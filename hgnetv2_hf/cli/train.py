"""``hgnetv2-hf train DATA --model DIR --output OUT``."""

import os

from ..training.options import Options, by_recipe
from ..training.recipe import MOMENTUM, TRAINING_ARGUMENTS, WEIGHT_DECAY
from . import _training
from ._framework import add_command


CONTINUES = _training.CONTINUES

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


def add(commands):
    return add_command(commands, "train", _HELP, add_help=False)  # `parse` has the arguments


def parse(strings):
    return _training.parse(
        strings,
        Options,
        "a folder with a folder per class, a name for `datasets`, or digits",
        "a classifier's folder or repository, a weight file, a published name, or a variant, which starts afresh",
        prog="hgnetv2-hf train",
        description=_HELP,
        epilog=_EPILOG,
    )


def run(arguments):
    from ..training import train

    result = _training.call(train, Options, arguments)
    if int(os.environ.get("RANK", 0)) == 0:
        print(result)
