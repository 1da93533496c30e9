"""What `train-detector` does unless told otherwise, as data: a row per detector as its authors train it on COCO, and
how that changes for small data.

Sources: D-FINE ``configs/dfine`` and RT-DETR ``rtdetrv2_pytorch/configs/rtdetrv2`` (the PyTorch port of what
PaddleDetection trains as RT-DETR).
"""

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
