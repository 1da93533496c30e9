"""SSLD: a student learns a frozen teacher's answers on images whose labels nobody needs.

Sources: Cui et al., *Beyond Self-Supervision*, arXiv 2103.05959; PaddleClas ``ppcls/configs/ssld`` and
``ppcls/configs/ImageNet/PPHGNetV2/PPHGNetV2_B4_ssld_stage*.yaml``; ``ppcls/loss/celoss.py`` with soft labels
(``DistillationCELoss``) and ``ppcls/loss/dmlloss.py`` (``DMLLoss``).
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import TrainingError
from .trainer import ClassifierTrainer, at_least_float32


def soft_cross_entropy(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """PaddleClas's `DistillationCELoss`: cross entropy with the teacher's softmax as target, mean over the batch."""
    return F.cross_entropy(student_logits, teacher_logits.softmax(-1))


def symmetric_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """PaddleClas's `DMLLoss`: the mean of the two Kullback-Leibler divergences, mean over the batch."""
    one, other = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    divergences = [F.kl_div(*pair, reduction="batchmean", log_target=True) for pair in ((one, other), (other, one))]
    return (divergences[0] + divergences[1]) / 2


DISTILLATION_LOSSES = {"ce": soft_cross_entropy, "kl": symmetric_kl}


class DistillationTrainer(ClassifierTrainer):
    """
    Trains a student on the answers of a frozen teacher; labels are only looked at in the evaluation.

    Args:
        teacher (`nn.Module`): any Transformers image classifier with the student's classes in the same order. It is
            set to evaluation mode, gets no gradients, and runs in the precision that training runs in.
        distillation_loss (`"ce"` or `"kl"`, defaults to `"ce"`): see [`soft_cross_entropy`] and [`symmetric_kl`].
        renormalise (`tuple`, *optional*): `(scale, shift)`, each `(1, 3, 1, 1)`, from the student's normalised pixels
            to the teacher's.
        args, kwargs: those of [`ClassifierTrainer`].

    Raises:
        `TrainingError`: the classes differ.
    """

    def __init__(self, *args, teacher: nn.Module, distillation_loss="ce", renormalise=None, **kwargs):
        super().__init__(*args, **kwargs)
        student_classes, teacher_classes = self.model.config.id2label, teacher.config.id2label
        if dict(student_classes) != dict(teacher_classes):
            raise TrainingError(
                f"The teacher's {len(teacher_classes)} classes are not the student's {len(student_classes)}, in the "
                "same order."
            )
        self.teacher = teacher.eval().requires_grad_(False).to(self.args.device)
        self.distillation_loss = DISTILLATION_LOSSES[distillation_loss]
        self.renormalise = renormalise

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training and "labels" in inputs:
            return super().compute_loss(model, inputs, return_outputs)
        pixel_values = inputs["pixel_values"]
        with torch.no_grad():
            teacher_logits = self.teacher(pixel_values=self._as_the_teacher_sees(pixel_values)).logits
        outputs = model(pixel_values=pixel_values)
        loss = self.distillation_loss(at_least_float32(outputs.logits), at_least_float32(teacher_logits))
        return (loss, outputs) if return_outputs else loss

    def _as_the_teacher_sees(self, pixel_values):
        if self.renormalise is None:
            return pixel_values
        scale, shift = (tensor.to(pixel_values) for tensor in self.renormalise)
        return pixel_values * scale + shift
