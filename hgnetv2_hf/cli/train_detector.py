"""``hgnetv2-hf train-detector DATA --model DIR --output OUT``."""

import os

from ..training.detection.options import DetectorOptions
from ..training.detection.recipe import SMALL, TRAINING_ARGUMENTS
from . import _training
from ._framework import add_command


CONTINUES = _training.CONTINUES

_HELP = (
    "Train or fine-tune a detector (D-FINE, DEIM, RT-DETRv4, DEIMv2, RT-DETR, RT-DETRv2); every option of "
    "TrainingArguments works too."
)
_EPILOG = f"""\
of TrainingArguments (python -c "import transformers; help(transformers.TrainingArguments)"), most wanted:
  --num_train_epochs N               coco: the authors', small: {SMALL.epochs}, but {SMALL.least_steps} steps
  --per_device_train_batch_size N    coco: the authors' over all processes, small: {SMALL.batch_size}
  --learning_rate X                  of encoder and decoder; the backbone's stays in proportion
  --optim NAME                       {TRAINING_ARGUMENTS["optim"]}
  --max_steps N                      instead of epochs
  --seed N                           42
  --bf16, --gradient_accumulation_steps N, --use_cpu, --report_to tensorboard
  --push_to_hub, --hub_model_id USER/NAME"""


def add(commands):
    return add_command(commands, "train-detector", _HELP, add_help=False)  # `parse` has the arguments


def parse(strings):
    return _training.parse(
        strings,
        DetectorOptions,
        "annotated images: COCO, YOLO or Pascal VOC, or a name for `datasets`",
        "a detector's folder or repository, a weight file, a published name; or with fresh weights dfine-n … x, "
        "deim-n … x, rtdetrv4-s … x, deimv2-atto, -femto, -pico, -n … x, rtdetr-l, -x, -h, rtdetrv2-l, -x, -h",
        prog="hgnetv2-hf train-detector",
        description=_HELP,
        epilog=_EPILOG,
    )


def run(arguments):
    from ..training import train_detector

    result = _training.call(train_detector, DetectorOptions, arguments)
    if int(os.environ.get("RANK", 0)) == 0:
        print(result)
