"""What `train-detector` does unless told otherwise, as data: a row per detector as its authors train it on COCO, and
how that changes for small data.

Sources: D-FINE ``configs/dfine`` and RT-DETR ``rtdetrv2_pytorch/configs/rtdetrv2`` (the PyTorch port of what
PaddleDetection trains as RT-DETR); DEIM ``configs/deim_dfine`` and ``configs/base/deim.yml``, RT-DETRv4
``configs/rtv4``, DEIMv2 ``configs/deimv2``.
"""

import math
from typing import NamedTuple, Optional

from ..recipe import WATCHED


class Recipe(NamedTuple):
    rate: float  # of encoder and decoder, AdamW, for `batch_size` images per step
    backbone_rate: float
    weight_decay: float
    epochs: int
    strong_until: int  # epochs with distortion, zoom out, crop and several sizes
    batch_size: int  # images per step, over all processes
    ema: float
    ema_after: float  # its decay once the strong augmentation has ended
    warmup_steps: int  # of the rate and of the moving average
    ema_warmup: int
    sizes_repeat: Optional[int]  # how often the full size stands among the sizes of a step; None: one size
    trains_batch_norm: bool  # the backbone's
    decays_biases: bool  # those of encoder and decoder
    norm_learns_as_head: bool = False  # the backbone's batch norm has the rate of the heads, and no decay
    dense: Optional["Dense"] = None  # what DEIM adds
    image_size: int = 640  # pixels per side
    num_queries: int = 300


class Dense(NamedTuple):
    """DEIM's dense one-to-one augmentation and its rate: flat, then a cosine to a part of it, then that."""

    start: int = 4  # epochs without any strong augmentation at the beginning
    flat_until: int = 29  # the epoch at which Mosaic and MixUp end, and the rate begins to fall
    last_rate: float = 0.5  # of the rate, when the strong augmentation has ended
    mosaic: float = 0.5  # probabilities
    mixup: float = 0.5


RECIPES = {
    #                  rate  backbone  decay epochs until batch ema after warm-up sizes norm biases
    "dfine-n": Recipe(8e-4, 4e-4, 1e-4, 160, 148, 128, 0.9999, 0.9999, 500, 1000, None, True, False),
    "dfine-s": Recipe(2e-4, 1e-4, 1e-4, 132, 120, 32, 0.9999, 0.9999, 500, 1000, 20, True, False),
    "dfine-m": Recipe(2e-4, 2e-5, 1e-4, 132, 120, 32, 0.9999, 0.9999, 500, 1000, 6, True, False),
    "dfine-l": Recipe(2.5e-4, 1.25e-5, 1.25e-4, 80, 72, 32, 0.9999, 0.9999, 500, 1000, 4, False, True),
    "dfine-x": Recipe(2.5e-4, 2.5e-6, 1.25e-4, 80, 72, 32, 0.9999, 0.9998, 500, 1000, 3, False, True),
    "rtdetrv2-l": Recipe(1e-4, 5e-6, 1e-4, 72, 71, 16, 0.9999, 0.9999, 2000, 2000, 1, False, True),
    "rtdetrv2-x": Recipe(1e-4, 1e-6, 1e-4, 72, 71, 16, 0.9999, 0.9999, 2000, 2000, 1, False, True),
    "rtdetrv2-h": Recipe(1e-4, 5e-6, 1e-4, 72, 71, 16, 0.9999, 0.9999, 2000, 2000, 1, False, True),
}  # fmt: skip
RECIPES.update({f"rtdetr-{size}": RECIPES[f"rtdetrv2-{size}"] for size in "lxh"})


def _deim(rate, backbone_rate, epochs, until, batch, sizes, biases=True, as_head=False, ema_after=0.9999, **dense):
    decay = 1e-4 if rate != 5e-4 else 1.25e-4
    return Recipe(
        rate, backbone_rate, decay, epochs, until, batch, 0.9999, ema_after, 2000, 1000, sizes, True, biases, as_head,
        Dense(**dense),
    )  # fmt: skip


RECIPES.update(
    {
        #           rate  backbone  epochs until batch sizes
        "deim-n": _deim(8e-4, 4e-4, 160, 148, 128, None, biases=False, flat_until=78, last_rate=1.0),
        "deim-s": _deim(4e-4, 2e-4, 132, 120, 32, 20, as_head=True, flat_until=64),
        "deim-m": _deim(4e-4, 4e-5, 102, 90, 32, 6, as_head=True, flat_until=49),
        "deim-l": _deim(5e-4, 2.5e-5, 58, 50, 32, 4),
        "deim-x": _deim(5e-4, 5e-6, 58, 50, 32, 3, ema_after=0.9998),
    }
)
RECIPES.update({f"rtdetrv4-{size}": RECIPES[f"deim-{size}"] for size in "smlx"})
# DEIMv2 without CopyBlend, and without the change of its matcher in the last epochs.
RECIPES.update({f"deimv2-{size}": RECIPES[f"deim-{size}"] for size in "nsmlx"})
RECIPES["deimv2-x"] = RECIPES["deimv2-x"]._replace(trains_batch_norm=False)
_LITE = _deim(1.6e-3, 8e-4, 500, 468, 128, None, biases=False, flat_until=250, mixup=0.0)._replace(warmup_steps=4000)
RECIPES.update(
    {
        "deimv2-atto": _LITE._replace(image_size=320, num_queries=100),  # Femto's values: its own were not at hand
        "deimv2-femto": _LITE._replace(image_size=416, num_queries=150),
        "deimv2-pico": _LITE._replace(num_queries=200),
    }
)


def flat_cosine(step, warmup, flat, end, last_rate):
    """
    The share of the rate in a step, as DEIM's ``engine/optim/lr_scheduler.py``.

    Args:
        step, warmup, flat, end (`int`): the step; where the warm-up, the flat part and the fall end.
        last_rate (`float`): the share at the end.
    """
    if step < warmup:
        return (step / warmup) ** 2
    if step <= flat:
        return 1.0
    if step >= end:
        return last_rate
    return last_rate + (1 - last_rate) * 0.5 * (1 + math.cos(math.pi * (step - flat) / (end - flat)))


class Small(NamedTuple):
    """What is different for small data."""

    epochs: int = 60
    least_steps: int = 400  # so few images are seen more often
    strong_from: int = 2000  # steps; shorter trainings only flip
    strong_share: float = 0.9  # of the epochs
    batch_size: int = 4  # images per step
    backbone_share: float = 0.5  # of the rate, for a trained backbone; a fresh one has the whole
    ema: float = 0.99
    ema_warmup: int = 100
    warmup_share: float = 0.05  # of the steps


SMALL = Small()
NAMES = ("auto", "coco", "small")
COCO_FROM = 50_000  # images to learn from
# The same in all: the originals clip gradients, keep the rate once it is warm, and have AdamW's usual betas.
TRAINING_ARGUMENTS = {
    "optim": "adamw_torch",
    "max_grad_norm": 0.1,
    "lr_scheduler_type": "constant_with_warmup",
    "per_device_eval_batch_size": 16,
    "metric_for_best_model": "AP",
    "greater_is_better": True,
    **WATCHED,
}


def choose(name, images):
    """
    Args:
        name (`"auto"`, `"coco"` or `"small"`)
        images (`int`): to learn from.

    Returns:
        `tuple[str, str]`: which one, and why.
    """
    if name != "auto":
        return name, "option"
    return ("coco" if images >= COCO_FROM else "small"), f"{images:,} images; coco is for {COCO_FROM:,} and more"
