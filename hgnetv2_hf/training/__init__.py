"""Training: PaddleClas's recipe on Hugging Face ``Trainer``, its knobs for any training loop, and distillation."""

from .augmentation import Augmentation
from .distillation import DistillationTrainer, soft_cross_entropy, symmetric_kl
from .freezing import Frozen, freeze
from .moving_average import MovingAverage
from .parameter_groups import parameter_groups
from .run import Options, Trained, train
from .trainer import ClassifierTrainer


__all__ = [
    "Augmentation",
    "ClassifierTrainer",
    "DistillationTrainer",
    "Frozen",
    "MovingAverage",
    "Options",
    "Trained",
    "freeze",
    "parameter_groups",
    "soft_cross_entropy",
    "symmetric_kl",
    "train",
]
