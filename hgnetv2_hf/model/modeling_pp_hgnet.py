"""PP-HGNet, the first version, as PaddleClas computes it (``pp_hgnet.py``, class ``PPHGNet``).

What it shares with PP-HGNetV2 stands in ``modeling_hgnetv2.py``: layers, stages, head, outputs. Here is what differs:
a stem of 3×3 convolutions in a row, and blocks whose channels an attention weighs.
"""

from typing import TYPE_CHECKING

from torch import nn

from .configuration_pp_hgnet import PPHGNetConfig
from .modeling_hgnetv2 import (
    HGNetV2Backbone,
    HGNetV2BasicLayer,
    HGNetV2CheckpointedLayer,
    HGNetV2ConvLayer,
    HGNetV2Model,
    HGNetV2PreTrainedModel,
    PaddleArithmetic,
    PPHGNetV2ForImageClassification,
    check_pixel_values,
)


if TYPE_CHECKING:  # for the loader of remote code: see CODE_FILES
    from .compat import init  # noqa: F401
    from .configuration_hgnetv2 import HGNetV2Config  # noqa: F401
    from .image_processing_hgnetv2 import HGNetV2ImageProcessor  # noqa: F401
    from .remote_code import AUTO_MAPS  # noqa: F401
    from .variants import VARIANTS  # noqa: F401


class PPHGNetEmbeddings(HGNetV2CheckpointedLayer):
    """The stem: (batch, num_channels, H, W) to (batch, stem_channels[-1], H / 4, W / 4)."""

    # Images need no gradient, and the reentrant form would give the stem's weights none either.
    checkpointing_options = {"use_reentrant": False}

    def __init__(self, config):
        super().__init__()
        widths = list(zip(config.stem_channels, config.stem_channels[1:]))
        self.stem = nn.Sequential(
            *(
                HGNetV2ConvLayer(before, after, 3, stride=2 if index == 0 else 1, activation=config.hidden_act)
                for index, (before, after) in enumerate(widths)
            )
        )
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.num_channels = config.num_channels

    def forward(self, pixel_values):
        check_pixel_values(pixel_values, self.num_channels)
        return self.pool(self.stem(pixel_values))


class PPHGNetAttention(nn.Module):
    """ESE, effective squeeze and excitation: each channel is multiplied by a number in 0…1 that the means of all
    channels decide (Lee and Park, https://arxiv.org/abs/1911.06667)."""

    def __init__(self, channels):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.convolution = nn.Conv2d(channels, channels, kernel_size=1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, hidden_state):
        return hidden_state * self.sigmoid(self.convolution(self.pool(hidden_state)))


class PPHGNetBlock(HGNetV2BasicLayer):
    """A block: layers in sequence, all their maps concatenated, joined by one 1×1 convolution and weighed."""

    def _aggregation(self, total_channels, out_channels, branches, activation, lab):
        """One convolution and the attention. PaddleClas draws fresh weights of all branches alike."""
        return nn.Sequential(
            HGNetV2ConvLayer(total_channels, out_channels, 1, activation=activation, lab=lab),
            PPHGNetAttention(out_channels),
        )


class PPHGNetPreTrainedModel(PaddleArithmetic, HGNetV2PreTrainedModel):
    config_class = PPHGNetConfig
    base_model_prefix = "pp_hgnet"
    _no_split_modules = ["PPHGNetBlock"]
    embeddings_class, block_class = PPHGNetEmbeddings, PPHGNetBlock

    def __init__(self, config, *args, **kwargs):
        if config.model_type != PPHGNetConfig.model_type:
            raise ValueError(f"{type(self).__name__} takes a PPHGNetConfig; got one of the type {config.model_type}.")
        super().__init__(config, *args, **kwargs)


class PPHGNetModel(PPHGNetPreTrainedModel, HGNetV2Model):
    """The trunk with global average pooling on top.

    Example:

        >>> import torch
        >>> import hgnetv2_hf
        >>> model = hgnetv2_hf.PPHGNetModel(hgnetv2_hf.PPHGNetConfig.from_variant("tiny")).eval()
        >>> with torch.inference_mode():
        ...     outputs = model(torch.zeros(1, 3, 64, 96))
        >>> outputs.last_hidden_state.shape, outputs.pooler_output.shape
        (torch.Size([1, 768, 2, 3]), torch.Size([1, 768]))
    """


class PPHGNetBackbone(PPHGNetPreTrainedModel, HGNetV2Backbone):
    """The trunk as a backbone: returns the maps that ``config.out_features`` names.

    Example:

        >>> import torch
        >>> import hgnetv2_hf
        >>> config = hgnetv2_hf.PPHGNetConfig.from_variant("tiny", out_features=["stem", "stage4"])
        >>> model = hgnetv2_hf.PPHGNetBackbone(config).eval()
        >>> with torch.inference_mode():
        ...     outputs = model(torch.zeros(1, 3, 64, 96))
        >>> [tuple(feature_map.shape) for feature_map in outputs.feature_maps]
        [(1, 96, 16, 24), (1, 768, 2, 3)]
    """


class PPHGNetForImageClassification(PPHGNetPreTrainedModel, PPHGNetV2ForImageClassification):
    """PaddleClas's classifier: average pool, 1×1 convolution without bias, ReLU, dropout, linear layer.

    Example:

        >>> import torch
        >>> import hgnetv2_hf
        >>> config = hgnetv2_hf.PPHGNetConfig.from_variant("tiny", num_labels=10)
        >>> model = hgnetv2_hf.PPHGNetForImageClassification(config).eval()
        >>> with torch.inference_mode():
        ...     outputs = model(torch.zeros(2, 3, 64, 64), labels=torch.tensor([0, 1]))
        >>> outputs.logits.shape, outputs.loss.shape
        (torch.Size([2, 10]), torch.Size([]))
    """


__all__ = ["PPHGNetBackbone", "PPHGNetForImageClassification", "PPHGNetModel"]
