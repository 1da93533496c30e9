"""What `train` does unless told otherwise, as data: a row per recipe, in the words of `TrainingArguments` and
`Options`."""

import math
import os
from typing import NamedTuple, Optional

from ..wording import counted


class Recipe(NamedTuple):
    epochs: float
    batch_size: int  # images per step and device
    images_per_step: int  # that the rates of `sgd` are for
    rate_power: float  # the rates of `sgd` grow with this power of the images per step
    sgd_rates: tuple[float, float]  # from fresh weights, from trained weights
    other_rates: tuple[float, float]  # of every other optimizer, taken as they are
    warmup_epochs: float  # at most a quarter of the training
    crop_scale: tuple[float, float]
    shift: float
    flip: float
    rand_augment: str
    random_erasing: float
    augmented_from: float  # epochs; images that are seen fewer times are cropped as little as `NOT_AUGMENTED` says
    ema: Optional[float]


RECIPES = {
    # PaddleClas ppcls/configs/ImageNet/PPHGNetV2/PPHGNetV2_B*.yaml, made for 1.28 million images and 200 epochs. It
    # says that fine-tuning needs a lower rate than 0.5. `tests/programs/compare_optimizers.py` compares the
    # optimizers.
    "imagenet": Recipe(
        epochs=200,
        batch_size=128,
        images_per_step=1024,
        rate_power=1.0,
        sgd_rates=(0.5, 0.05),
        other_rates=(4e-3, 5e-4),
        warmup_epochs=5,
        crop_scale=(0.08, 1.0),
        shift=0.0,
        flip=0.5,
        rand_augment="rand-m7-mstd0.5-inc1",
        random_erasing=0.25,
        augmented_from=0,
        ema=None,
    ),
    # For hundreds to tens of thousands of images. What was measured, and what was not, stands in the README.md of this
    # folder.
    "small": Recipe(
        epochs=30,
        batch_size=32,
        images_per_step=32,
        rate_power=0.5,
        sgd_rates=(0.1, 0.1),
        other_rates=(2e-3, 2e-3),
        warmup_epochs=1,
        crop_scale=(0.8, 1.25),
        shift=0.1,
        flip=0.0,  # letters, digits and signs are not their mirror images
        rand_augment="none",
        random_erasing=0.0,
        augmented_from=10,
        ema=None,
    ),
}
NOT_AUGMENTED = {"crop_scale": (1.0, 1.0), "shift": 0.0, "flip": 0.0, "rand_augment": "none", "random_erasing": 0.0}
NAMES = ("auto", *RECIPES)
IMAGENET_FROM = 10_000_000  # images seen during the training

# How a run is watched and kept, of classifiers and detectors; the originals evaluate and save every epoch too.
WATCHED = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "logging_steps": 0.005,
    "logging_nan_inf_filter": False,
    "report_to": "none",
    "remove_unused_columns": False,
    "dataloader_num_workers": min(8, os.cpu_count() or 1),
    "dataloader_persistent_workers": True,
}
# The same in both.
TRAINING_ARGUMENTS = {
    "optim": "sgd",
    "max_grad_norm": 0.0,  # PaddleClas clips no gradients
    "lr_scheduler_type": "cosine",
    "label_smoothing_factor": 0.1,
    "per_device_eval_batch_size": 128,
    "metric_for_best_model": "accuracy",
    **WATCHED,
}
# With `--fsdp "full_shard auto_wrap"`: every process loads the weights itself, which works on CPUs too.
FSDP_CONFIG = {"version": 2, "cpu_ram_efficient_loading": False, "sync_module_states": False}
MOMENTUM = 0.9
WEIGHT_DECAY = {"sgd": 2e-5, "other": 0.05}


def choose(name, images, epochs=None, images_seen=None):
    """
    Args:
        name (`"auto"` or a key of `RECIPES`)
        images (`int` or `None`): to learn from; `None` of a stream.
        epochs (`float`, *optional*): that were asked for.
        images_seen (`int`, *optional*): where the number of steps was asked for.

    Returns:
        `tuple[str, str]`: the key of a row, and why it was taken.
    """
    if name != "auto":
        return name, "option"
    if images_seen is None:
        epochs = RECIPES["small"].epochs if epochs is None else epochs
        images_seen, times = round(images * epochs), int(epochs) if epochs == int(epochs) else round(epochs, 2)
        how = f"{images:,} images × {counted(times, 'epoch')}"
    else:
        how = f"{images_seen:,} images seen"
    found = "imagenet" if images_seen >= IMAGENET_FROM else "small"
    return found, f"{how}; imagenet is for {IMAGENET_FROM:,} images seen and more"


def augmentation(recipe, epochs):
    """The defaults of the options of [`Augmentation`] for this many epochs."""
    if epochs < recipe.augmented_from:
        return NOT_AUGMENTED
    return {name: getattr(recipe, name) for name in NOT_AUGMENTED}


def training_arguments(recipe):
    """The defaults of `TrainingArguments`."""
    return {
        **TRAINING_ARGUMENTS,
        "num_train_epochs": recipe.epochs,
        "per_device_train_batch_size": recipe.batch_size,
    }


def learning_rate(recipe, optim, is_fresh, images_per_step):
    """The rate for this optimizer (`TrainingArguments.optim`), fresh or trained weights, and the images of one
    step."""
    fresh, trained = recipe.sgd_rates if optim == "sgd" else recipe.other_rates
    rate = fresh if is_fresh else trained
    return rate * math.pow(images_per_step / recipe.images_per_step, recipe.rate_power) if optim == "sgd" else rate


def weight_decay(optim):
    return WEIGHT_DECAY.get(optim, WEIGHT_DECAY["other"])
