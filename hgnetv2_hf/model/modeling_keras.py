"""PP-HGNetV2 with KerasHub's head: its convolution has a batch norm and is applied to the whole map, then pooled.

PaddleClas and timm pool first. With a ReLU in between, the two orders give other logits from the same weights.

Source: KerasHub ``keras_hub/src/models/hgnetv2/hgnetv2_image_classifier.py``.
"""

from typing import TYPE_CHECKING

from torch import nn

from .configuration_keras import HGNetV2KerasConfig
from .modeling_hgnetv2 import (
    HGNetV2ConvLayer,
    HGNetV2PreTrainedModel,
    PPHGNetV2Backbone,
    PPHGNetV2ForImageClassification,
    PPHGNetV2Model,
)


if TYPE_CHECKING:  # for the loader of remote code: see CODE_FILES
    from .compat import PretrainedConfig  # noqa: F401
    from .configuration_hgnetv2 import HGNetV2Config  # noqa: F401
    from .image_processing_hgnetv2 import HGNetV2ImageProcessor  # noqa: F401
    from .remote_code import AUTO_MAPS  # noqa: F401
    from .variants import VARIANTS  # noqa: F401


class HGNetV2KerasModel(PPHGNetV2Model):
    """The trunk of KerasHub's classifier, with global average pooling on top.

    Example:

        >>> import torch
        >>> import hgnetv2_hf
        >>> model = hgnetv2_hf.HGNetV2KerasModel(hgnetv2_hf.HGNetV2KerasConfig.from_variant("b0")).eval()
        >>> with torch.inference_mode():
        ...     outputs = model(torch.zeros(1, 3, 64, 64))
        >>> outputs.pooler_output.shape
        torch.Size([1, 1024])
    """

    config_class = HGNetV2KerasConfig


class HGNetV2KerasBackbone(PPHGNetV2Backbone):
    """The trunk of KerasHub's classifier, as a backbone.

    Example:

        >>> import torch
        >>> import hgnetv2_hf
        >>> model = hgnetv2_hf.HGNetV2KerasBackbone(hgnetv2_hf.HGNetV2KerasConfig.from_variant("b0")).eval()
        >>> with torch.inference_mode():
        ...     outputs = model(torch.zeros(1, 3, 64, 64))
        >>> outputs.feature_maps[-1].shape
        torch.Size([1, 1024, 2, 2])
    """

    config_class = HGNetV2KerasConfig


class HGNetV2KerasForImageClassification(PPHGNetV2ForImageClassification):
    """KerasHub's classifier: 1×1 convolution, batch norm, ReLU and LAB, then pooling, dropout, linear layer.

    Example:

        >>> import torch
        >>> import hgnetv2_hf
        >>> config = hgnetv2_hf.HGNetV2KerasConfig.from_variant("b0", num_labels=10)
        >>> model = hgnetv2_hf.HGNetV2KerasForImageClassification(config).eval()
        >>> with torch.inference_mode():
        ...     outputs = model(torch.zeros(2, 3, 64, 64), labels=torch.tensor([0, 1]))
        >>> outputs.logits.shape, outputs.loss.shape
        (torch.Size([2, 10]), torch.Size([]))
    """

    config_class = HGNetV2KerasConfig

    def __init__(self, config):
        HGNetV2PreTrainedModel.__init__(self, config)
        self.num_labels = self.config.num_labels
        self._build_trunk()
        width, lab = self.config.stage_out_channels[-1], self.config.use_learnable_affine_block
        self.last_conv = HGNetV2ConvLayer(width, self.config.class_expand, kernel_size=1, lab=lab)
        pooling = nn.AdaptiveMaxPool2d if self.config.head_pooling == "max" else nn.AdaptiveAvgPool2d
        self.avg_pool = pooling((1, 1))
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(self.config.dropout_prob)
        self.fc = self._linear(self.config.class_expand)
        self.post_init()

    def _head(self, feature_map):
        """(batch, width, height, width) to logits (batch, num_labels)."""
        return self.fc(self.dropout(self.flatten(self.avg_pool(self.last_conv(feature_map)))))


__all__ = ["HGNetV2KerasBackbone", "HGNetV2KerasForImageClassification", "HGNetV2KerasModel"]
