"""The losses of one training step of a detector of Transformers, as its original program computes them."""

from typing import Any, Optional

import torch
from transformers import PreTrainedModel

from .criterion import DetectionCriterion
from .outputs import draw_denoising, family_of, training_outputs


def detection_losses(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    targets: list[dict[str, torch.Tensor]],
    denoising: Optional[dict[str, Any]] = None,
    criterion: Optional[DetectionCriterion] = None,
    call: Any = None,
) -> dict[str, torch.Tensor]:
    """
    What the original program minimises, for a detector of Transformers; `model(labels=…)` stays what it is.

    Args:
        model (`PreTrainedModel`): `DFineForObjectDetection`, `RTDetrForObjectDetection`, `RTDetrV2ForObjectDetection`,
            `DEIMForObjectDetection` or `DEIMv2ForObjectDetection`, with any backbone, in training mode.
        pixel_values (`torch.Tensor`): `(images, 3, height, width)`.
        targets (`list[dict]`): of each image, `labels` (or `class_labels`) `(n,)` and `boxes` `(n, 4)`, centre and
            size in 0…1.
        denoising (`dict`, *optional*): the denoising queries, as [`make_denoising`] returns them; drawn by default.
        criterion ([`DetectionCriterion`], *optional*): by default that of the model's family.
        call (callable, *optional*): the model as it is wrapped (DDP), called in its place.

    Returns:
        `dict[str, torch.Tensor]`: weighted losses under the original's names; `sum(losses.values())` is the total.

    Raises:
        `TrainingError`: another model, a model in evaluation mode, or a label that is no class.

    Example:

    ```python
    >>> import torch
    >>> from transformers import DFineConfig, DFineForObjectDetection
    >>> from hgnetv2_hf import HGNetV2Config
    >>> from hgnetv2_hf.training import detection_losses

    >>> backbone = HGNetV2Config.from_variant("b0", out_features=["stage2", "stage3", "stage4"])
    >>> config = DFineConfig(backbone_config=backbone, encoder_in_channels=[256, 512, 1024], num_labels=2)
    >>> model = DFineForObjectDetection(config).train()
    >>> targets = [{"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}] * 2
    >>> losses = detection_losses(model, torch.rand(2, 3, 64, 64), targets)
    >>> [name for name in losses if name.endswith("_pre")]
    ['loss_vfl_pre', 'loss_bbox_pre', 'loss_giou_pre', 'loss_vfl_dn_pre', 'loss_bbox_dn_pre', 'loss_giou_dn_pre']

    ```
    """
    targets = [
        {
            "labels": (target["labels"] if "labels" in target else target["class_labels"]).to(pixel_values.device),
            "boxes": target["boxes"].to(pixel_values.device),
        }
        for target in targets
    ]
    if criterion is None:
        reg_max = getattr(model.config, "max_num_bins", 32)
        criterion = DetectionCriterion(family_of(model.config), model.config.num_labels, reg_max=reg_max)
    if denoising is None and model.config.num_denoising > 0:
        denoising = draw_denoising(model.config, targets)
    outputs = training_outputs(model, pixel_values, denoising, call)
    with torch.autocast(pixel_values.device.type, enabled=False):
        return criterion(outputs, targets)
