"""Training: recipes on Hugging Face ``Trainer``, PaddleClas's options for any training loop, and distillation."""

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .augmentation import Augmentation
    from .detection.criterion import DetectionCriterion
    from .detection.losses import detection_losses
    from .detection.options import DetectorOptions
    from .detection.run import TrainedDetector, train_detector
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
    "DetectorOptions": "detection.options",
    "DistillationTrainer": "distillation",
    "Frozen": "freezing",
    "MovingAverage": "moving_average",
    "Options": "options",
    "Trained": "run",
    "TrainedDetector": "detection.run",
    "detection_losses": "detection.losses",
    "freeze": "freezing",
    "parameter_groups": "rates",
    "soft_cross_entropy": "distillation",
    "symmetric_kl": "distillation",
    "train": "run",
    "train_detector": "detection.run",
}

__all__ = [
    "Augmentation",
    "ClassifierTrainer",
    "DetectionCriterion",
    "DetectorOptions",
    "DistillationTrainer",
    "Frozen",
    "MovingAverage",
    "Options",
    "Trained",
    "TrainedDetector",
    "detection_losses",
    "freeze",
    "parameter_groups",
    "soft_cross_entropy",
    "symmetric_kl",
    "train",
    "train_detector",
]


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__():
    return sorted({*globals(), *__all__})
