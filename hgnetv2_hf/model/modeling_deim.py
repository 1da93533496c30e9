"""DEIM and RT-DETRv4: the network of D-FINE with another activation in its heads, which Transformers fixes to ReLU.

Sources: DEIM ``engine/deim/dfine_decoder.py`` (commit 09d35d5), RT-DETRv4 ``engine/rtv4`` (df44122).
"""

from typing import TYPE_CHECKING

from torch import nn
from transformers.activations import ACT2FN
from transformers.models.d_fine.modeling_d_fine import (
    DFineForObjectDetection,
    DFineMLP,
    DFineMLPPredictionHead,
    DFineModel,
    DFinePreTrainedModel,
)

from .compat import convert_names_like
from .configuration_deim import DEIMConfig


if TYPE_CHECKING:  # for the loader of remote code: see CODE_FILES
    from .modeling_deimv2 import DEIMv2Model  # noqa: F401
    from .remote_code import AUTO_MAPS  # noqa: F401


convert_names_like("deim", "d_fine")


class DEIMPredictionHead(nn.Module):
    """`DFineMLPPredictionHead` with an activation of one's choice; tensors have the same names."""

    def __init__(self, layers, activation):
        super().__init__()
        self.layers = layers
        self.act = ACT2FN[activation]

    def forward(self, hidden_states):
        *hidden, last = self.layers
        for layer in hidden:
            hidden_states = self.act(layer(hidden_states))
        return last(hidden_states)


def _activate_heads(model):
    """Gives every head of a D-FINE network the activation that its configuration names; layers keep their own."""
    activation = model.config.head_activation_function
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, DFineMLPPredictionHead):
                setattr(module, name, DEIMPredictionHead(child.layers, activation))
            elif isinstance(child, DFineMLP) and name != "mlp":  # a feed-forward layer has its own activation
                child.act = ACT2FN[activation]


def refuse_to_train(*args, **kwargs):
    """In the place of `loss_function`: Transformers has no loss of these detectors."""
    raise ValueError(
        "`labels` were given, and Transformers has no loss of this detector: hgnetv2_hf.training.detection_losses "
        "computes its authors'; `hgnetv2-hf train-detector` trains with it."
    )


class DEIMModel(DFineModel):
    """
    Backbone, encoder and decoder; see `transformers.DFineModel`.

    Example:

        >>> import torch
        >>> import hgnetv2_hf
        >>> backbone = hgnetv2_hf.HGNetV2Config.from_variant("b0", out_features=["stage2", "stage3", "stage4"])
        >>> config = hgnetv2_hf.DEIMConfig(
        ...     backbone_config=backbone, encoder_in_channels=[256, 512, 1024], num_queries=20
        ... )
        >>> hgnetv2_hf.DEIMModel(config).eval()(torch.zeros(1, 3, 64, 64)).last_hidden_state.shape
        torch.Size([1, 20, 256])
    """

    config_class = DEIMConfig

    def __init__(self, config: DEIMConfig):
        super().__init__(config)
        _activate_heads(self)


class DEIMForObjectDetection(DFineForObjectDetection):
    """
    DEIM's and RT-DETRv4's detectors. Arguments and outputs of `forward` are those of
    `transformers.DFineForObjectDetection`, but `labels`, which it refuses.

    Example:

        >>> import torch
        >>> import hgnetv2_hf
        >>> backbone = hgnetv2_hf.HGNetV2Config.from_variant("b0", out_features=["stage2", "stage3", "stage4"])
        >>> config = hgnetv2_hf.DEIMConfig(
        ...     backbone_config=backbone, encoder_in_channels=[256, 512, 1024], num_labels=2, num_queries=20
        ... )
        >>> model = hgnetv2_hf.DEIMForObjectDetection(config).eval()
        >>> model(torch.zeros(1, 3, 64, 64)).pred_boxes.shape
        torch.Size([1, 20, 4])
    """

    config_class = DEIMConfig
    _tied_weights_keys = None

    def __init__(self, config: DEIMConfig):
        DFinePreTrainedModel.__init__(self, config)
        self.eval_idx = config.eval_idx if config.eval_idx >= 0 else config.decoder_layers + config.eval_idx
        self.model = DEIMModel(config)
        layers, width = range(config.decoder_layers), config.d_model
        self.model.decoder.class_embed = nn.ModuleList([nn.Linear(width, config.num_labels) for _ in layers])
        self.model.decoder.bbox_embed = nn.ModuleList(
            [DFineMLP(width, width, 4 * (config.max_num_bins + 1), 3, config.head_activation_function) for _ in layers]
        )
        self.loss_function = refuse_to_train
        self.post_init()

    # Stock has the heads a second time beside the decoder, which its version 5.0.0 cannot load.
    @property
    def class_embed(self):
        """The class heads, which are the decoder's."""
        return self.model.decoder.class_embed

    @property
    def bbox_embed(self):
        """The box heads, which are the decoder's."""
        return self.model.decoder.bbox_embed


__all__ = ["DEIMForObjectDetection", "DEIMModel"]
