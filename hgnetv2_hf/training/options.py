"""The options of `train` beside `TrainingArguments`: names, defaults and help in one table, for Python and the command
line."""

import dataclasses
import math
import typing
from typing import Any, Optional

from ..errors import TrainingError
from .recipe import NAMES, RECIPES


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# What values may be: a test, and the words for what it expects.
RANGES = {
    "positive": (lambda value: isinstance(value, int) and value > 0, "a positive whole number"),
    "probability": (lambda value: _is_number(value) and 0 <= value < 1, "a number of at least 0 and below 1"),
    "share": (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "not negative": (lambda value: _is_number(value) and value >= 0, "a number that is not negative"),
    "area": (
        lambda pair: len(pair) == 2 and all(map(_is_number, pair)) and 0 < pair[0] <= pair[1],
        "two positive numbers, the smaller one first",
    ),
}


def by_recipe(field):
    """The default of an option in each recipe, as text."""

    def text(value):
        return " ".join(f"{each:g}" for each in value) if isinstance(value, tuple) else value

    return ", ".join(f"{name}: {text(getattr(row, field))}" for name, row in RECIPES.items())


def option(default: Any, help: str, **more: Any) -> Any:
    """
    A field of [`Options`].

    Args:
        default: `None` where the recipe, or what is trained, gives it.
        help (`str`): for the command line and for Python; `%(default)s` stands for the default.
        more: for the field's metadata: `details` (`str`: goes on after `help`, in Python only), `metavar`, `choices`,
            `flag` (that turns a `True` off, where it is not ``--no-`` and the name), `range` (a key of `RANGES`).
    """
    return dataclasses.field(default=default, metadata={"help": help, **more})


def value_type(field: dataclasses.Field) -> Any:
    """The type of a field's values, without the `None` of those that the recipe gives."""
    if typing.get_origin(field.type) is typing.Union:
        return next(each for each in typing.get_args(field.type) if each is not type(None))
    return field.type


@dataclasses.dataclass
class Options:
    """What [`train`] takes beside `TrainingArguments`."""

    recipe: str = option(
        "auto",
        "the defaults of what follows: for small data, or PaddleClas's for ImageNet (default: %(default)s, by the "
        "images seen)",
        choices=NAMES,
        details="; see `recipe.py`",
    )
    from_scratch: bool = option(False, "fresh weights, whatever the folder holds")
    compare_from_scratch: bool = option(False, "train a second time so, and report both", details=", on the same data")
    head: str = option(
        "auto",
        "the last layer (default: %(default)s, by the labels)",
        choices=("auto", "keep", "new"),
        details="; see `load_starting_point`",
    )
    image_size: Optional[int] = option(
        None, "pixels per side (default: the image processor's)", metavar="PIXELS", range="positive"
    )
    classes: Optional[list[str]] = option(None, "a subset of the classes", metavar="NAME")
    images_per_class: Optional[int] = option(
        None, "the first training images of each class", metavar="N", range="positive", details=", and no others"
    )
    validation_fraction: float = option(
        0.1,
        "held out where DATA has no validation (default: %(default)s)",
        metavar="P",
        range="probability",
        details="; of each class, 0 for none",
    )
    class_folders: Optional[str] = option(
        None, "which folders are the classes where DATA has folders in folders", choices=("outer", "inner")
    )
    image_column: Optional[str] = option(None, "of a data set of `datasets`", metavar="NAME")
    label_column: Optional[str] = option(None, "of a data set of `datasets`", metavar="NAME")
    config_name: Optional[str] = option(None, "of a data set of `datasets`", metavar="NAME")
    streaming: bool = option(
        False,
        "read such a data set as a stream; needs --max_steps",
        details="; unreadable images are skipped and counted",
    )
    check: bool = option(
        True,
        "do not decode every image beforehand",
        details="; by default every image is decoded once, and those that cannot be read are left out",
    )
    crop_scale: Optional[tuple[float, float]] = option(
        None,
        f"of the random crop ({by_recipe('crop_scale')})",
        metavar=("MIN", "MAX"),
        range="area",
        details="; see [`Augmentation`]",
    )
    shift: Optional[float] = option(
        None,
        f"of the crop, beyond the image's border ({by_recipe('shift')})",
        metavar="P",
        range="not negative",
        details="; see [`Augmentation`]",
    )
    flip: Optional[float] = option(
        None,
        f"probability of a horizontal flip ({by_recipe('flip')})",
        metavar="P",
        range="share",
        details="; see [`Augmentation`]",
    )
    rand_augment: Optional[str] = option(
        None,
        f"timm's notation, or none ({by_recipe('rand_augment')})",
        metavar="TEXT",
        details="; see [`Augmentation`]",
    )
    random_erasing: Optional[float] = option(
        None,
        f"probability ({by_recipe('random_erasing')}; 0 with a teacher)",
        metavar="P",
        range="share",
        details="; as in PaddleClas's SSLD files; see [`Augmentation`]",
    )
    draw_data: Optional[int] = option(
        None,
        "draw N images, as evaluated and as learnt from",
        metavar="N",
        range="positive",
        details=", in the picture `data.png`",
    )
    class_weights: bool = option(
        False, "rare classes count as much as frequent ones", details=" in the loss, however many images they have"
    )
    early_stopping: Optional[int] = option(
        None,
        "stop after N evaluations without a better accuracy",
        metavar="N",
        range="positive",
        details=", and keep the best weights",
    )
    warmup_epochs: Optional[float] = option(
        None,
        f"in which the rate rises from 0 ({by_recipe('warmup_epochs')})",
        metavar="N",
        range="not negative",
        details="; at most a quarter of the training; of a stream, a twentieth",
    )
    lr_mult_list: Optional[list[float]] = option(
        None,
        "multipliers of the rate: stem, stage 1, stage 2, …",
        metavar="X",
        details="; see [`parameter_groups`]",
    )
    lab_lr_mult: float = option(
        0.01,
        "LAB's rate in its layer's (default: %(default)s)",
        metavar="X",
        range="not negative",
        details="; see [`parameter_groups`]",
    )
    exempt_biases_and_lab: bool = option(False, "no decay for these either", details="; see [`parameter_groups`]")
    freeze_at: int = option(
        -1, "0: the stem, and with --freeze-stages stage 1, …", metavar="N", details="; -1: nothing; see [`freeze`]"
    )
    freeze_stem_only: bool = option(
        True,
        "--freeze-at counts stages, not only the stem",
        flag="--freeze-stages",
        details="; see [`freeze`]",
    )
    freeze_norm: bool = option(False, "batch norm computes as in evaluation", details="; see [`freeze`]")
    drop_path: float = option(
        0.0,
        "stochastic depth (default: %(default)g)",
        metavar="P",
        range="probability",
        details="; see [`set_drop_path_rate`]",
    )
    ema: Optional[float] = option(
        None,
        "keep an exponential moving average",
        metavar="DECAY",
        range="probability",
        details=", of this decay; its weights are evaluated and saved",
    )
    teacher: Optional[str] = option(None, "learn this classifier's answers instead of labels (SSLD)", metavar="DIR")
    distillation_loss: str = option(
        "ce",
        "soft cross entropy or symmetric KL (default: %(default)s)",
        choices=("ce", "kl"),
        details="; see [`DistillationTrainer`]",
    )
    sync_batch_norm: bool = option(
        True,
        "every process has batch statistics of its own",
        details="; by default they are common to all, where the processes are on GPUs and use DDP",
    )
    channels_last: bool = option(
        True,
        "keep PyTorch's own layout",
        details="; by default weights and images of an HGNetV2 are channels-last in memory, but not with FSDP",
    )


def check_options(options):
    """Raises ``TrainingError`` for a value that an option cannot have."""
    for field in dataclasses.fields(options):
        value, choices = getattr(options, field.name), field.metadata.get("choices")
        if value is None and field.default is None:
            continue
        if choices is not None and value not in choices:
            raise TrainingError(f"Unsupported {field.name} {value!r}: expected {' or '.join(choices)}.")
        accepts, expected = RANGES.get(field.metadata.get("range"), (None, None))
        if accepts is not None and not accepts(value):
            raise TrainingError(f"Unsupported {field.name} {value!r}: expected {expected}.")


def _description(field):
    """A field's lines in the class's docstring."""
    choices, kind = field.metadata.get("choices"), value_type(field)
    if choices:
        *others, last = [f'`"{choice}"`' for choice in choices]
        kind = f"{', '.join(others)} or {last}"
    else:
        kind = f"`{kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else kind}`"
    text = field.metadata["help"] % {"default": field.default}
    if field.default is True:
        text = f"`False`: {text}"
    optional = ", *optional*" if field.default is None else ""
    return f"{field.name} ({kind}{optional}): {text}{field.metadata.get('details', '')}."


def describe_fields(options):
    """Writes the help of a class's options into its docstring, which `python -OO` leaves out."""
    descriptions = "\n".join(f"    {_description(field)}" for field in dataclasses.fields(options))
    options.__doc__ = f"{options.__doc__ or ''}\n\nArgs:\n{descriptions}"


describe_fields(Options)
