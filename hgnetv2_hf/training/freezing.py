"""What stays as it is while the rest trains, with the arguments of PaddleDetection and D-FINE.

Source: ``freeze_at``, ``freeze_stem_only`` and ``freeze_norm`` of PaddleDetection
``ppdet/modeling/backbones/hgnet_v2.py`` and of D-FINE ``src/nn/backbone/hgnetv2.py``.
"""

import dataclasses

import torch
from torch import nn

from ..structure import is_network


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that computes as in evaluation while the model trains. The names of its tensors are those of batch
    norm."""

    def __init__(self, normalization):
        super().__init__(normalization.num_features, normalization.eps, normalization.momentum)
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(self, name, getattr(normalization, name))
        self.eval()
        self.requires_grad_(False)

    def train(self, mode=True):
        return super().train(False)


@dataclasses.dataclass
class Frozen:
    """What [`freeze`] did."""

    parameters: int  # numbers that no longer train, those of batch norm included
    batch_norms: int  # layers whose statistics stand still


def freeze(model: nn.Module, freeze_at: int = -1, freeze_stem_only: bool = True, freeze_norm: bool = False) -> Frozen:
    """
    Freezes parts of every HGNetV2 inside ``model``, in place. Saved files stay the same.

    Args:
        model (`nn.Module`): a classifier, a backbone or a detector.
        freeze_at (`int`, defaults to -1): at 0 or more the parameters of the stem are frozen and, unless
            `freeze_stem_only`, those of the stages up to this index (0 is the first stage). Batch norm's statistics
            keep moving, as in the originals.
        freeze_stem_only (`bool`, defaults to `True`): no stage, whatever `freeze_at` says.
        freeze_norm (`bool`, defaults to `False`): every batch norm of the network computes as in evaluation:
            statistics, weight and bias stand still.

    Returns:
        [`Frozen`]: how much was frozen.

    Raises:
        `ValueError`: the model holds no HGNetV2.
    """
    networks = [module for module in model.modules() if is_network(module)]
    if not networks:
        raise ValueError(f"{type(model).__name__} contains no HGNetV2.")
    before = _frozen_count(model)
    batch_norms = 0
    for network in networks:
        if freeze_at >= 0:
            network.embedder.requires_grad_(False)
            if not freeze_stem_only:
                for stage in network.encoder.stages[: freeze_at + 1]:
                    stage.requires_grad_(False)
        if freeze_norm:
            batch_norms += _freeze_norm(network)
    return Frozen(_frozen_count(model) - before, batch_norms)


def _freeze_norm(network):
    count = 0
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in (nn.BatchNorm2d, nn.SyncBatchNorm):
                setattr(parent, name, FrozenBatchNorm2d(child))
                count += 1
    return count


def _frozen_count(model):
    return sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)


def batch_norms_that_move(model: nn.Module) -> list[nn.Module]:
    """Batch norms that take statistics of the batch when the model trains."""
    return [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        and module.track_running_stats
        and not isinstance(module, FrozenBatchNorm2d)
    ]
