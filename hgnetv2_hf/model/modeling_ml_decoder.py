"""PP-HGNetV2 with an ML-Decoder: a query per label looks at the whole map, where others pool it.

Source: PaddleClas ``ppcls/arch/gears/ml_decoder.py`` and ``ppcls/arch/gears/__init__.py``, which puts it in the place
of ``fc`` and takes pooling and flattening away; Ridnik et al. 2021, https://arxiv.org/abs/2111.12933.
"""

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from .compat import init
from .configuration_hgnetv2 import PADDLE_EPSILON
from .configuration_ml_decoder import PPHGNetV2MLConfig
from .modeling_hgnetv2 import PPHGNetV2Backbone, PPHGNetV2ForImageClassification, PPHGNetV2Model


if TYPE_CHECKING:  # for the loader of remote code: see CODE_FILES
    from .image_processing_hgnetv2 import HGNetV2ImageProcessor  # noqa: F401
    from .remote_code import AUTO_MAPS  # noqa: F401
    from .variants import VARIANTS  # noqa: F401


class MLDecoderAttention(nn.Module):
    """Attention of several heads: (batch, queries, width) and (batch, places, width) to (batch, queries, width)."""

    def __init__(self, config):
        super().__init__()
        width = config.decoder_hidden_size
        self.num_heads = config.decoder_attention_heads
        self.scaling = (width // self.num_heads) ** -0.5
        self.drop_prob = config.decoder_dropout
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, queries, places):
        query, key, value = (
            projected.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for projected in (self.q_proj(queries), self.k_proj(places), self.v_proj(places))
        )
        drop_prob = self.drop_prob if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=drop_prob, scale=self.scaling)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class MLDecoderLayer(nn.Module):
    """Queries look at each other (unless it is the first layer), then at the places of a map; each part has a norm."""

    def __init__(self, config, self_attention):
        super().__init__()
        width = config.decoder_hidden_size
        self.self_attn = MLDecoderAttention(config) if self_attention else None
        self.norm1 = nn.LayerNorm(width, eps=PADDLE_EPSILON)
        self.cross_attn = MLDecoderAttention(config)
        self.norm2 = nn.LayerNorm(width, eps=PADDLE_EPSILON)
        self.linear1 = nn.Linear(width, config.decoder_ffn_dim)
        self.activation = ACT2FN[config.decoder_activation_function]
        self.linear2 = nn.Linear(config.decoder_ffn_dim, width)
        self.norm3 = nn.LayerNorm(width, eps=PADDLE_EPSILON)
        self.dropout = nn.Dropout(config.decoder_dropout)

    def forward(self, queries, places):
        # PaddleClas puts an identity in the place of the attention, so the queries are added to themselves.
        seen = queries if self.self_attn is None else self.self_attn(queries, queries)
        queries = self.norm1(queries + self.dropout(seen))
        queries = self.norm2(queries + self.dropout(self.cross_attn(queries, places)))
        hidden = self.dropout(self.activation(self.linear1(queries)))
        return self.norm3(queries + self.dropout(self.linear2(hidden)))


class MLDecoderQueries(nn.Module):
    """A vector (queries, width) per query. PaddleClas draws them once and trains them never, so they are a buffer."""

    def __init__(self, queries, width):
        super().__init__()
        self.register_buffer("weight", torch.empty(queries, width))


class MLDecoder(nn.Module):
    """The classifier: a map (batch, in_channels, height, width) of any size to logits (batch, num_labels)."""

    def __init__(self, config, in_channels):
        super().__init__()
        if config.num_labels < 1:
            raise ValueError("`num_labels` cannot build an ML-Decoder: got 0, expected at least one label.")
        width = config.decoder_hidden_size
        queries = min(config.decoder_queries, config.num_labels)
        self.num_labels = config.num_labels
        self.input_proj = nn.Conv2d(in_channels, width, kernel_size=1)
        self.query_pos_embed = MLDecoderQueries(queries, width)
        self.layers = nn.ModuleList(
            MLDecoderLayer(config, self_attention=config.decoder_self_attention or index > 0)
            for index in range(config.decoder_layers)
        )
        logits = queries * math.ceil(config.num_labels / queries)
        self.group_conv = nn.Conv2d(queries * width, logits, kernel_size=1, groups=queries)
        self.group_conv.initial_gain = 1.0

    def forward(self, feature_map):
        places = F.relu(self.input_proj(feature_map)).flatten(2).transpose(1, 2)
        queries = self.query_pos_embed.weight.expand(feature_map.shape[0], -1, -1)
        for layer in self.layers:
            queries = layer(queries, places)
        logits = self.group_conv(queries.flatten(1)[..., None, None]).flatten(1)
        return logits[:, : self.num_labels]


class PPHGNetV2MLModel(PPHGNetV2Model):
    """The trunk of a multi-label classifier, with global average pooling on top.

    Example:

        >>> import torch
        >>> import hgnetv2_hf
        >>> model = hgnetv2_hf.PPHGNetV2MLModel(hgnetv2_hf.PPHGNetV2MLConfig.from_variant("b0")).eval()
        >>> with torch.inference_mode():
        ...     outputs = model(torch.zeros(1, 3, 64, 64))
        >>> outputs.pooler_output.shape
        torch.Size([1, 1024])
    """

    config_class = PPHGNetV2MLConfig


class PPHGNetV2MLBackbone(PPHGNetV2Backbone):
    """The trunk of a multi-label classifier, as a backbone.

    Example:

        >>> import torch
        >>> import hgnetv2_hf
        >>> model = hgnetv2_hf.PPHGNetV2MLBackbone(hgnetv2_hf.PPHGNetV2MLConfig.from_variant("b0")).eval()
        >>> with torch.inference_mode():
        ...     outputs = model(torch.zeros(1, 3, 64, 64))
        >>> outputs.feature_maps[-1].shape
        torch.Size([1, 1024, 2, 2])
    """

    config_class = PPHGNetV2MLConfig


class PPHGNetV2MLForImageClassification(PPHGNetV2ForImageClassification):
    """PaddleClas's multi-label classifier: the map goes through the head's convolution into an ML-Decoder, unpooled.

    Example:

        >>> import torch
        >>> import hgnetv2_hf
        >>> config = hgnetv2_hf.PPHGNetV2MLConfig.from_variant("b0", num_labels=5)
        >>> model = hgnetv2_hf.PPHGNetV2MLForImageClassification(config).eval()
        >>> labels = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0]])
        >>> with torch.inference_mode():
        ...     outputs = model(torch.zeros(1, 3, 64, 96), labels=labels)
        >>> outputs.logits.shape, outputs.loss.shape
        (torch.Size([1, 5]), torch.Size([]))
    """

    config_class = PPHGNetV2MLConfig
    _no_split_modules = [*PPHGNetV2ForImageClassification._no_split_modules, "MLDecoder"]

    def __init__(self, config):
        super().__init__(config)
        self.avg_pool = nn.Identity()
        self.flatten = nn.Identity()

    def _linear(self, in_features):
        return MLDecoder(self.config, in_features)

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, MLDecoderQueries):
            init.normal_(module.weight)


__all__ = ["PPHGNetV2MLBackbone", "PPHGNetV2MLForImageClassification", "PPHGNetV2MLModel"]
