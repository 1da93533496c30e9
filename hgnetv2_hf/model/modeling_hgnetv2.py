"""PP-HGNetV2, from the smallest block to the whole models.

The trunk keeps the order of operations and the tensor names of Transformers' ``hgnet_v2``, so the same weights give
the same bits. The head of ``PPHGNetV2ForImageClassification`` is PaddleClas's (``pp_hgnet_v2.py``, class
``PPHGNetV2``).
"""

from typing import TYPE_CHECKING, Optional, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.modeling_utils import PreTrainedModel

from .compat import BackboneMixin, init, init_backbone, returns_dict
from .configuration_hgnetv2 import HGNetV2Config, PPHGNetV2Config


if TYPE_CHECKING:  # for the loader of remote code: see CODE_FILES
    from .image_processing_hgnetv2 import HGNetV2ImageProcessor  # noqa: F401
    from .remote_code import AUTO_MAPS  # noqa: F401
    from .variants import VARIANTS  # noqa: F401


class HGNetV2LearnableAffineBlock(nn.Module):
    """LAB: one learned scale and one learned bias for a whole activation map."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0]))
        self.bias = nn.Parameter(torch.tensor([0.0]))

    def forward(self, hidden_state):
        return self.scale * hidden_state + self.bias


class HGNetV2DropPath(nn.Module):
    """Stochastic depth: while training, drops the whole branch of a sample with probability ``drop_prob``."""

    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_state):
        if not self.training or self.drop_prob == 0.0:
            return hidden_state
        keep_prob = 1.0 - self.drop_prob
        keep = hidden_state.new_empty((hidden_state.shape[0], 1, 1, 1)).bernoulli_(keep_prob)
        return hidden_state * (keep / keep_prob)

    def extra_repr(self):
        return f"drop_prob={self.drop_prob}"


class PPHGNetV2Dropout(nn.Module):
    """Paddle's dropout ``downscale_in_infer``: drops without rescaling, and evaluation multiplies by ``1 - p``."""

    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob
        self.keep_prob = float(np.float32(1) - np.float32(drop_prob))  # Paddle's kernel subtracts in float32

    def forward(self, hidden_state):
        if self.drop_prob == 0.0:
            return hidden_state
        if self.training:
            return hidden_state * torch.empty_like(hidden_state).bernoulli_(self.keep_prob)
        return hidden_state * self.keep_prob

    def extra_repr(self):
        return f"drop_prob={self.drop_prob}"


class HGNetV2ConvLayer(nn.Module):
    """Convolution, batch norm and, unless ``activation`` is ``None``, activation and LAB."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, groups=1, activation="relu", lab=False):
        super().__init__()
        self.convolution = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=tuple(stride) if isinstance(stride, list) else stride,
            groups=groups,
            padding=(kernel_size - 1) // 2,
            bias=False,
        )
        self.normalization = nn.BatchNorm2d(out_channels)
        self.activation = ACT2FN[activation] if activation is not None else nn.Identity()
        self.lab = HGNetV2LearnableAffineBlock() if activation is not None and lab else nn.Identity()
        self.convolution.initial_gain = 1.0 if activation is None else 2**0.5

    def forward(self, hidden_state):
        hidden_state = self.convolution(hidden_state)
        hidden_state = self.normalization(hidden_state)
        hidden_state = self.activation(hidden_state)
        return self.lab(hidden_state)


class HGNetV2ConvLayerLight(nn.Module):
    """A pointwise convolution without activation, then a depthwise one with it."""

    def __init__(self, in_channels, out_channels, kernel_size, activation, lab):
        super().__init__()
        self.conv1 = HGNetV2ConvLayer(in_channels, out_channels, kernel_size=1, activation=None)
        self.conv2 = HGNetV2ConvLayer(
            out_channels, out_channels, kernel_size, groups=out_channels, activation=activation, lab=lab
        )

    def forward(self, hidden_state):
        return self.conv2(self.conv1(hidden_state))


class HGNetV2CheckpointedLayer(GradientCheckpointingLayer):
    """A layer that gradient checkpointing runs twice and whose batch norm counts the batch once, as without it."""

    checkpointing_options = {}

    @property
    def _gradient_checkpointing_func(self):  # what Transformers sets, and calls with a function and its arguments
        return self._checkpointed

    @_gradient_checkpointing_func.setter
    def _gradient_checkpointing_func(self, checkpoint):
        self._checkpoint = checkpoint

    def _checkpointed(self, run, *args):
        return self._checkpoint(_CountsTheBatchOnce(self, run), *args, **self.checkpointing_options)


class HGNetV2Embeddings(HGNetV2CheckpointedLayer):
    """The stem: (batch, num_channels, H, W) to (batch, stem_channels[2], H / 4, W / 4) with the default strides."""

    # Images need no gradient, and the reentrant form would give the stem's weights none either.
    checkpointing_options = {"use_reentrant": False}

    def __init__(self, config):
        super().__init__()
        in_channels, mid_channels, out_channels = config.stem_channels
        strides = config.stem_strides
        block = {"activation": config.hidden_act, "lab": config.use_learnable_affine_block}
        self.stem1 = HGNetV2ConvLayer(in_channels, mid_channels, 3, stride=strides[0], **block)
        self.stem2a = HGNetV2ConvLayer(mid_channels, mid_channels // 2, 2, stride=strides[1], **block)
        self.stem2b = HGNetV2ConvLayer(mid_channels // 2, mid_channels, 2, stride=strides[2], **block)
        self.stem3 = HGNetV2ConvLayer(mid_channels * 2, mid_channels, 3, stride=strides[3], **block)
        self.stem4 = HGNetV2ConvLayer(mid_channels, out_channels, 1, stride=strides[4], **block)
        self.pool = nn.MaxPool2d(kernel_size=2, stride=1, ceil_mode=True)
        self.pool_padding = config.stem_pool_padding
        self.num_channels = config.num_channels

    def forward(self, pixel_values):
        check_pixel_values(pixel_values, self.num_channels)
        embedding = self.stem1(pixel_values)
        padded = F.pad(embedding, (0, 1, 0, 1))
        embedding = padded if self.pool_padding == 0.0 else F.pad(embedding, (0, 1, 0, 1), value=self.pool_padding)
        branch = self.stem2a(padded)
        branch = F.pad(branch, (0, 1, 0, 1))
        branch = self.stem2b(branch)
        pooled = self.pool(embedding)
        embedding = torch.cat([pooled, branch], dim=1)
        embedding = self.stem3(embedding)
        return self.stem4(embedding)


def check_pixel_values(pixel_values, num_channels):
    """Raises ``ValueError`` where there is no image, or one with another number of channels."""
    if pixel_values is None:
        raise ValueError("`pixel_values` is required: a tensor of shape (batch, channels, height, width).")
    if pixel_values.shape[1] != num_channels:
        raise ValueError(
            f"`pixel_values` has {pixel_values.shape[1]} channels in dimension 1; `num_channels` of the "
            f"configuration is {num_channels}."
        )


class HGNetV2BasicLayer(HGNetV2CheckpointedLayer):
    """A block: layers in sequence, all their maps concatenated, squeezed and excited by two 1×1 convolutions."""

    def __init__(
        self,
        in_channels,
        mid_channels,
        out_channels,
        num_layers,
        kernel_size,
        light_block,
        residual,
        num_blocks,
        activation,
        lab,
    ):
        super().__init__()
        self.residual = residual
        layer_class = HGNetV2ConvLayerLight if light_block else HGNetV2ConvLayer
        self.layers = nn.ModuleList(
            layer_class(
                in_channels if i == 0 else mid_channels, mid_channels, kernel_size, activation=activation, lab=lab
            )
            for i in range(num_layers)
        )
        total_channels, branches = in_channels + num_layers * mid_channels, num_blocks if residual else 1
        self.aggregation = self._aggregation(total_channels, out_channels, branches, activation, lab)
        self.drop_path = nn.Identity()

    def _aggregation(self, total_channels, out_channels, branches, activation, lab):
        """What makes one map of all that the layers computed; its fresh weights are one of so many branches."""
        squeeze = HGNetV2ConvLayer(total_channels, out_channels // 2, 1, activation=activation, lab=lab)
        excite = HGNetV2ConvLayer(out_channels // 2, out_channels, 1, activation=activation, lab=lab)
        excite.convolution.initial_gain /= branches
        return nn.Sequential(squeeze, excite)

    def forward(self, hidden_state):
        identity = hidden_state
        outputs = [hidden_state]
        for layer in self.layers:
            hidden_state = layer(hidden_state)
            outputs.append(hidden_state)
        hidden_state = torch.cat(outputs, dim=1)
        hidden_state = self.aggregation(hidden_state)
        if self.residual:
            hidden_state = self.drop_path(hidden_state) + identity
        return hidden_state


class HGNetV2Stage(nn.Module):
    """An optional downsampling convolution, then blocks; all but the first are residual."""

    def __init__(self, config, index, block_class=HGNetV2BasicLayer):
        super().__init__()
        in_channels = config.stage_in_channels[index]
        out_channels = config.stage_out_channels[index]
        if config.stage_downsample[index]:
            stride = config.stage_downsample_strides[index]
            self.downsample = HGNetV2ConvLayer(
                in_channels, in_channels, 3, stride=stride, groups=in_channels, activation=None
            )
        else:
            self.downsample = nn.Identity()
        self.blocks = nn.ModuleList(
            block_class(
                in_channels if i == 0 else out_channels,
                config.stage_mid_channels[index],
                out_channels,
                num_layers=config.stage_numb_of_layers[index],
                kernel_size=config.stage_kernel_size[index],
                light_block=config.stage_light_block[index],
                residual=i != 0,
                num_blocks=config.stage_num_blocks[index],
                activation=config.hidden_act,
                lab=config.use_learnable_affine_block,
            )
            for i in range(config.stage_num_blocks[index])
        )

    def forward(self, hidden_state):
        hidden_state = self.downsample(hidden_state)
        for block in self.blocks:
            hidden_state = block(hidden_state)
        return hidden_state


class HGNetV2Encoder(nn.Module):
    def __init__(self, config, block_class=HGNetV2BasicLayer):
        super().__init__()
        stages = range(len(config.stage_in_channels))
        self.stages = nn.ModuleList(HGNetV2Stage(config, index, block_class) for index in stages)

    def forward(self, hidden_state, output_hidden_states=False):
        """The last map and, only if asked for (they cost memory), the stem's map and that after each stage."""
        hidden_states = (hidden_state,) if output_hidden_states else None
        for stage in self.stages:
            hidden_state = stage(hidden_state)
            if output_hidden_states:
                hidden_states += (hidden_state,)
        return hidden_state, hidden_states


class HGNetV2PreTrainedModel(PreTrainedModel):
    """What all models share: their configuration, and how weights start and are shared out.

    Example:

        >>> import hgnetv2_hf
        >>> config = hgnetv2_hf.HGNetV2Config.from_variant("b0")
        >>> isinstance(hgnetv2_hf.HGNetV2Backbone(config), hgnetv2_hf.HGNetV2PreTrainedModel)
        True
    """

    config_class = HGNetV2Config
    base_model_prefix = "hgnetv2"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = (
        False  # the loss is a mean over images: `Trainer` has to divide it when it accumulates gradients
    )
    _no_split_modules = ["HGNetV2BasicLayer"]
    embeddings_class, block_class = HGNetV2Embeddings, HGNetV2BasicLayer

    def __init__(self, config, *args, **kwargs):
        if not hasattr(config, "check_architecture"):  # stock's own configuration class
            config = self.config_class.from_stock(config)
        config.check_architecture()
        super().__init__(config, *args, **kwargs)

    def _build_trunk(self):
        self.embedder = self.embeddings_class(self.config)
        self.encoder = HGNetV2Encoder(self.config, self.block_class)

    def get_input_embeddings(self):
        return None  # accelerate asks before it shards, and must not get an error

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, HGNetV2LearnableAffineBlock):
            init.ones_(module.scale)
            init.zeros_(module.bias)
        elif "BatchNorm" in type(module).__name__:  # by name: detectors put their frozen batch norm in its place
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)


class PaddleArithmetic:
    """What distinguishes `pp_hgnet_v2` and `pp_hgnet` in every model: Paddle's epsilon, and its own initial weights.

    Kaiming-normal convolutions, as PaddleClas starts them, with what keeps fresh activations at one scale in
    evaluation mode too: gain 1 where no activation follows, and residual branches divided by the number of blocks of
    their stage.
    """

    def post_init(self):
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = self.config.batch_norm_eps
        super().post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            gain = getattr(module, "initial_gain", 2**0.5)
            init.normal_(module.weight, mean=0.0, std=gain / module.weight[0].numel() ** 0.5)


class HGNetV2Model(HGNetV2PreTrainedModel):
    """The trunk with global average pooling on top.

    Example:

        >>> import torch
        >>> import hgnetv2_hf
        >>> model = hgnetv2_hf.HGNetV2Model(hgnetv2_hf.HGNetV2Config.from_variant("b0")).eval()
        >>> with torch.inference_mode():
        ...     outputs = model(torch.zeros(1, 3, 64, 96))
        >>> outputs.last_hidden_state.shape, outputs.pooler_output.shape
        (torch.Size([1, 1024, 2, 3]), torch.Size([1, 1024]))
    """

    _keys_to_ignore_on_load_unexpected = [r"^fc\.", r"^last_conv\.", r"^lab\."]

    def __init__(self, config):
        super().__init__(config)
        self._build_trunk()
        self.pooler = nn.AdaptiveAvgPool2d((1, 1))
        self.post_init()

    def forward(
        self,
        pixel_values: Optional[torch.Tensor] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
        **kwargs,
    ) -> Union[BaseModelOutputWithPoolingAndNoAttention, tuple]:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`): normalised images.
            output_hidden_states (`bool`, *optional*): also return the maps of the stem and of every stage.
            return_dict (`bool`, *optional*): a `ModelOutput` (default) or a tuple.

        Returns:
            `BaseModelOutputWithPoolingAndNoAttention`: `last_hidden_state` `(batch, width, height / 32, width / 32)`,
            `pooler_output` `(batch, width)`, and `hidden_states` if asked for.
        """
        return_dict = returns_dict(self.config, return_dict)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        last_hidden_state, hidden_states = self.encoder(self.embedder(pixel_values), output_hidden_states)
        output = BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=last_hidden_state,
            pooler_output=self.pooler(last_hidden_state).flatten(1),
            hidden_states=hidden_states,
        )
        return output if return_dict else output.to_tuple()


class HGNetV2Backbone(BackboneMixin, HGNetV2PreTrainedModel):
    """The trunk as a backbone: returns the maps that ``config.out_features`` names.

    Example:

        >>> import torch
        >>> import hgnetv2_hf
        >>> config = hgnetv2_hf.HGNetV2Config.from_variant("b0", out_features=["stage3", "stage4"])
        >>> model = hgnetv2_hf.HGNetV2Backbone(config).eval()
        >>> with torch.inference_mode():
        ...     outputs = model(torch.zeros(1, 3, 64, 96))
        >>> [tuple(feature_map.shape) for feature_map in outputs.feature_maps]
        [(1, 512, 4, 6), (1, 1024, 2, 3)]
    """

    has_attentions = False
    _keys_to_ignore_on_load_unexpected = [r"^fc\.", r"^last_conv\.", r"^lab\."]

    def __init__(self, config):
        super().__init__(config)
        init_backbone(self)
        self.num_features = [self.config.stem_channels[-1], *self.config.stage_out_channels]
        self._build_trunk()
        self.post_init()

    def forward(
        self,
        pixel_values: Optional[torch.Tensor] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
        **kwargs,
    ) -> Union[BackboneOutput, tuple]:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`): normalised images.
            output_hidden_states (`bool`, *optional*): also return the maps of the stem and of every stage.
            return_dict (`bool`, *optional*): a `ModelOutput` (default) or a tuple.

        Returns:
            `BackboneOutput`: `feature_maps`, one `(batch, width, height, width)` tensor per entry of `out_features`.
        """
        return_dict = returns_dict(self.config, return_dict)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        _, hidden_states = self.encoder(self.embedder(pixel_values), output_hidden_states=True)
        feature_maps = tuple(hidden_states[i] for i, name in enumerate(self.stage_names) if name in self.out_features)
        if not return_dict:
            return (feature_maps, hidden_states) if output_hidden_states else (feature_maps,)
        return BackboneOutput(
            feature_maps=feature_maps, hidden_states=hidden_states if output_hidden_states else None, attentions=None
        )


class HGNetV2ForImageClassification(HGNetV2PreTrainedModel):
    """Transformers' own head: a linear layer on the pooled features.

    Example:

        >>> import torch
        >>> import hgnetv2_hf
        >>> config = hgnetv2_hf.HGNetV2Config.from_variant("b0", num_labels=10)
        >>> model = hgnetv2_hf.HGNetV2ForImageClassification(config).eval()
        >>> with torch.inference_mode():
        ...     outputs = model(torch.zeros(2, 3, 64, 64), labels=torch.tensor([0, 1]))
        >>> outputs.logits.shape, outputs.loss.shape
        (torch.Size([2, 10]), torch.Size([]))
    """

    def __init__(self, config):
        super().__init__(config)
        self.config.check_classifier()
        self.num_labels = self.config.num_labels
        self._build_trunk()
        self.avg_pool = nn.AdaptiveAvgPool2d((1, 1))
        self.flatten = nn.Flatten()
        self.fc = self._linear(self.config.stage_out_channels[-1])
        self.post_init()

    def _linear(self, in_features):
        return nn.Linear(in_features, self.num_labels) if self.num_labels > 0 else nn.Identity()

    def _head(self, feature_map):
        """(batch, width, height, width) to logits (batch, num_labels)."""
        return self.fc(self.flatten(self.avg_pool(feature_map)))

    def forward(
        self,
        pixel_values: Optional[torch.Tensor] = None,
        labels: Optional[torch.Tensor] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
        **kwargs,
    ) -> Union[ImageClassifierOutputWithNoAttention, tuple]:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`): normalised images.
            labels (*optional*): class indices `(batch,)` for cross entropy, floats `(batch, num_labels)` in 0…1 for
                the multi-label loss, floats `(batch,)` for regression with one label.
            output_hidden_states (`bool`, *optional*): also return the maps of the stem and of every stage.
            return_dict (`bool`, *optional*): a `ModelOutput` (default) or a tuple.

        Returns:
            `ImageClassifierOutputWithNoAttention`: `logits` `(batch, num_labels)`, `loss` and `hidden_states`.
        """
        return_dict = returns_dict(self.config, return_dict)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        last_hidden_state, hidden_states = self.encoder(self.embedder(pixel_values), output_hidden_states)
        logits = self._head(last_hidden_state)
        output = ImageClassifierOutputWithNoAttention(
            loss=self.loss_function(labels, logits, self.config) if labels is not None else None,
            logits=logits,
            hidden_states=hidden_states,
        )
        return output if return_dict else output.to_tuple()


class PPHGNetV2Model(PaddleArithmetic, HGNetV2Model):
    """The trunk as PaddleClas computes it, with global average pooling on top.

    Example:

        >>> import torch
        >>> import hgnetv2_hf
        >>> model = hgnetv2_hf.PPHGNetV2Model(hgnetv2_hf.PPHGNetV2Config.from_variant("b0")).eval()
        >>> with torch.inference_mode():
        ...     outputs = model(torch.zeros(1, 3, 64, 64))
        >>> outputs.pooler_output.shape
        torch.Size([1, 1024])
    """

    config_class = PPHGNetV2Config


class PPHGNetV2Backbone(PaddleArithmetic, HGNetV2Backbone):
    """The trunk as PaddleClas computes it, as a backbone.

    Example:

        >>> import torch
        >>> import hgnetv2_hf
        >>> model = hgnetv2_hf.PPHGNetV2Backbone(hgnetv2_hf.PPHGNetV2Config.from_variant("b0")).eval()
        >>> with torch.inference_mode():
        ...     outputs = model(torch.zeros(1, 3, 64, 64))
        >>> outputs.feature_maps[-1].shape
        torch.Size([1, 1024, 2, 2])
    """

    config_class = PPHGNetV2Config


class PPHGNetV2ForImageClassification(PaddleArithmetic, HGNetV2ForImageClassification):
    """PaddleClas's classifier: average pool, 1×1 convolution without bias, ReLU, LAB, dropout, linear layer.

    Example:

        >>> from pathlib import Path
        >>> import torch
        >>> import hgnetv2_hf
        >>> report = hgnetv2_hf.convert_checkpoint("digits", "digits")
        >>> processor = hgnetv2_hf.HGNetV2ImageProcessor.from_pretrained("digits")
        >>> model = hgnetv2_hf.PPHGNetV2ForImageClassification.from_pretrained("digits").eval()
        >>> image = Path(hgnetv2_hf.__file__).parent / "assets" / "digits" / "digit_7.png"
        >>> with torch.inference_mode():
        ...     outputs = model(**processor(image, return_tensors="pt"))
        >>> outputs.logits.shape
        torch.Size([1, 10])
        >>> model.config.id2label[outputs.logits.argmax().item()]
        '7'
    """

    config_class = PPHGNetV2Config

    def __init__(self, config):
        HGNetV2PreTrainedModel.__init__(self, config)
        self.num_labels = self.config.num_labels
        self._build_trunk()
        self.avg_pool = nn.AdaptiveAvgPool2d((1, 1))
        width = self.config.stage_out_channels[-1]
        if self.config.use_last_conv:
            self.last_conv = nn.Conv2d(width, self.config.class_expand, kernel_size=1, bias=False)
            self.act = ACT2FN[self.config.hidden_act]
            self.lab = HGNetV2LearnableAffineBlock() if self.config.use_learnable_affine_block else nn.Identity()
            self.dropout = PPHGNetV2Dropout(self.config.dropout_prob)
            width = self.config.class_expand
        self.flatten = nn.Flatten()
        self.fc = self._linear(width)
        self.post_init()

    def _head(self, feature_map):
        """(batch, width, height, width) to logits (batch, num_labels)."""
        pooled = self.avg_pool(feature_map)
        if self.config.use_last_conv:
            pooled = self.dropout(self.lab(self.act(self.last_conv(pooled))))
        return self.fc(self.flatten(pooled))


# Gradient checkpointing runs a layer's forward again during the backward pass, and `nn.BatchNorm2d` would move its
# running statistics both times. PyTorch offers `context_fn` for the second run, but not in the form with re-entry,
# which older Transformers choose by default, and `torch.compile` accepts no context there that swaps buffers.
# `track_running_stats` cannot be switched off either: the second run would save other tensors than the first, which
# the checkpoint refuses. What would end this: a batch norm in PyTorch that knows when it is recomputed.
class _CountsTheBatchOnce:
    """A function that runs twice: the second time the layer's batch norms move copies of their statistics."""

    def __init__(self, layer, run):
        self.layer, self.run = layer, run
        self.has_run = False

    def __call__(self, *args):
        statistics = {}
        if self.has_run:
            statistics = {
                norm: dict(norm._buffers) for norm in self.layer.modules() if "running_mean" in norm._buffers
            }
        self.has_run = True
        try:
            for norm, buffers in statistics.items():
                norm._buffers.update({name: buffer.clone() for name, buffer in buffers.items()})
            return self.run(*args)
        finally:
            for norm, buffers in statistics.items():
                norm._buffers.update(buffers)


__all__ = [
    "HGNetV2Backbone",
    "HGNetV2ForImageClassification",
    "HGNetV2Model",
    "HGNetV2PreTrainedModel",
    "PPHGNetV2Backbone",
    "PPHGNetV2ForImageClassification",
    "PPHGNetV2Model",
]
