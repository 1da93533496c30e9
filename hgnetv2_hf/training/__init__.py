"""Training: recipes on Hugging Face ``Trainer``, PaddleClas's options for any training loop, and distillation."""

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .augmentation import Augmentation
    from .detection.criterion import DetectionCriterion
    from .detection.losses import detection_losses
    from .distillation import DistillationTrainer, soft_cross_entropy, symmetric_kl
    from .freezing import Frozen, freeze
    from .moving_average import MovingAverage
    from .options import Options
    from .rates import parameter_groups
    from .run import Trained, train
    from .trainer import ClassifierTrainer

# The same names again for the interpreter: `Trainer` costs seconds of imports, and the command line reads the recipes
# only.
_MODULE_OF = {
    "Augmentation": "augmentation",
    "ClassifierTrainer": "trainer",
    "DetectionCriterion": "detection.criterion",
    "DistillationTrainer": "distillation",
    "Frozen": "freezing",
    "MovingAverage": "moving_average",
    "Options": "options",
    "Trained": "run",
    "detection_losses": "detection.losses",
    "freeze": "freezing",
    "parameter_groups": "rates",
    "soft_cross_entropy": "distillation",
    "symmetric_kl": "distillation",
    "train": "run",
}

__all__ = [
    "Augmentation",
    "ClassifierTrainer",
    "DetectionCriterion",
    "DistillationTrainer",
    "Frozen",
    "MovingAverage",
    "Options",
    "Trained",
    "detection_losses",
    "freeze",
    "parameter_groups",
    "soft_cross_entropy",
    "symmetric_kl",
    "train",
]


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__():
    return sorted({*globals(), *__all__})
