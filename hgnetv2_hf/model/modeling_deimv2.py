"""DEIMv2 with HGNetV2: encoders, decoder, detector.

What DEIMv2 shares with D-FINE is Transformers' own: backbone, convolutions, deformable attention, quality estimator,
distribution of edges, choice of queries. What differs is here: RMS norms and SwiGLU in the decoder, whose query
positions are computed once; fusion by sums and other fusion blocks in the encoder, and the lite one.

Source: DEIMv2 ``engine/deim`` (commit 0fff8d4).
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.d_fine.modeling_d_fine import (
    DFineConvEncoder,
    DFineConvNormLayer,
    DFineDecoder,
    DFineDecoderOutput,
    DFineGate,
    DFineIntegral,
    DFineLQE,
    DFineMLP,
    DFineModel,
    DFineMultiscaleDeformableAttention,
    DFinePreTrainedModel,
    DFineRepVggBlock,
    DFineSCDown,
    distance2bbox,
    inverse_sigmoid,
    weighting_function,
)

from .configuration_deim import DEIMv2Config
from .modeling_deim import DEIMForObjectDetection, refuse_to_train


if TYPE_CHECKING:  # for the loader of remote code: see CODE_FILES
    from .compat import PretrainedConfig  # noqa: F401
    from .remote_code import AUTO_MAPS  # noqa: F401


class DEIMv2RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 at least."""

    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden_states):
        values = hidden_states.float() if hidden_states.dtype in (torch.float16, torch.bfloat16) else hidden_states
        values = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + self.eps)
        return values.to(hidden_states.dtype) * self.weight


class DEIMv2Attention(nn.Module):
    """Attention of all positions to all: (batch, positions, width); their embedding is added to queries and keys."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(width, width))

    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        queries = hidden_states + position_embeddings
        parts = (self.q_proj(queries), self.k_proj(queries), self.v_proj(hidden_states))
        heads = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(*heads, attn_mask=attention_mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class DEIMv2EncoderLayer(nn.Module):
    """The layer of a transformer over one feature map, norms behind the sums."""

    def __init__(self, config):
        super().__init__()
        width = config.encoder_hidden_dim
        self.self_attn = DEIMv2Attention(width, config.encoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = DFineMLP(width, config.encoder_ffn_dim, width, 2, config.encoder_activation_function)
        self.final_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, hidden_states, position_embeddings):
        hidden_states = self.self_attn_layer_norm(hidden_states + self.self_attn(hidden_states, position_embeddings))
        return self.final_layer_norm(hidden_states + self.mlp(hidden_states))


class DEIMv2FeatureInteraction(nn.Module):
    """AIFI: transformer layers over one feature map, (batch, width, height, width of the map) to the same."""

    def __init__(self, config):
        super().__init__()
        self.temperature = config.positional_encoding_temperature
        self.layers = nn.ModuleList([DEIMv2EncoderLayer(config) for _ in range(config.encoder_layers)])

    def forward(self, feature_map):
        hidden_states = feature_map.flatten(2).transpose(1, 2)
        positions = _sine_positions(*feature_map.shape[1:], self.temperature, feature_map.device)
        for layer in self.layers:
            hidden_states = layer(hidden_states, positions.to(hidden_states.dtype))
        return hidden_states.transpose(1, 2).unflatten(2, feature_map.shape[2:]).contiguous()


def _sine_positions(channels, height, width, temperature, device):
    """`(1, height * width, channels)`: sine and cosine of column, then of row. The original lays columns out first,
    so on a map that is not square its rows and columns are exchanged."""
    exponents = torch.arange(channels // 4, dtype=torch.float32, device=device) / (channels // 4)
    frequencies = 1.0 / temperature**exponents
    columns, rows = torch.meshgrid(
        torch.arange(width, dtype=torch.float32, device=device),
        torch.arange(height, dtype=torch.float32, device=device),
        indexing="ij",
    )
    columns, rows = (each.flatten()[:, None] * frequencies for each in (columns, rows))
    return torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], 1)[None]


class DEIMv2CSPLayer(nn.Module):
    """`CSPLayer2`: one convolution for both branches, bottlenecks on the second."""

    def __init__(self, config, in_channels, channels, blocks):
        super().__init__()
        self.conv1 = DFineConvNormLayer(config, in_channels, 2 * channels, 1, 1, activation=config.activation_function)
        self.bottlenecks = nn.Sequential(*(DFineRepVggBlock(config, channels, channels) for _ in range(blocks)))

    def forward(self, feature_map):
        kept, changed = self.conv1(feature_map).chunk(2, 1)
        return kept + self.bottlenecks(changed)


class DEIMv2FusionBlock(nn.Module):
    """`RepNCSPELAN4`, or `RepNCSPELAN5`, which has no convolution behind its branches."""

    def __init__(self, config):
        super().__init__()
        width, act = config.encoder_hidden_dim, config.activation_function
        narrow = round(config.hidden_expansion * width // 2)
        has_convolutions = config.encoder_type == "lite" or config.encoder_block == "elan4"

        def branch(in_channels):
            layers = [DEIMv2CSPLayer(config, in_channels, narrow, config.encoder_blocks)]
            if has_convolutions:
                layers.append(DFineConvNormLayer(config, narrow, narrow, 3, 1, activation=act))
            return nn.Sequential(*layers)

        self.conv1 = DFineConvNormLayer(config, width, 2 * width, 1, 1, activation=act)
        self.branch1 = branch(width)
        self.branch2 = branch(narrow)
        self.conv2 = DFineConvNormLayer(config, 2 * width + 2 * narrow, width, 1, 1, activation=act)

    def forward(self, feature_map):
        parts = list(self.conv1(feature_map).chunk(2, 1))
        for branch in (self.branch1, self.branch2):
            parts.append(branch(parts[-1]))
        return self.conv2(torch.cat(parts, 1))


class DEIMv2HybridEncoder(nn.Module):
    """Feature interaction on some levels, then fusion by sums from coarse to fine and back."""

    def __init__(self, config):
        super().__init__()
        width, fusions = config.encoder_hidden_dim, range(len(config.encoder_in_channels) - 1)
        self.levels = list(config.encode_proj_layers) if config.encoder_layers else []
        self.encoder = nn.ModuleList([DEIMv2FeatureInteraction(config) for _ in self.levels])
        self.lateral_convs = nn.ModuleList([DFineConvNormLayer(config, width, width, 1, 1) for _ in fusions])
        self.fpn_blocks = nn.ModuleList([DEIMv2FusionBlock(config) for _ in fusions])
        self.downsample_convs = nn.ModuleList([DFineSCDown(config, 3, 2) for _ in fusions])
        self.pan_blocks = nn.ModuleList([DEIMv2FusionBlock(config) for _ in fusions])

    def forward(self, inputs_embeds, **kwargs):
        feature_maps = list(inputs_embeds)
        for level, interact in zip(self.levels, self.encoder):
            feature_maps[level] = interact(feature_maps[level])
        *finer, coarse = feature_maps
        down = []  # coarse first
        for lateral, fuse, feature_map in zip(self.lateral_convs, self.fpn_blocks, reversed(finer)):
            coarse = lateral(coarse)
            down.append(coarse)
            coarse = fuse(_doubled(coarse) + feature_map)
        outputs = [coarse]
        for downsample, fuse, feature_map in zip(self.downsample_convs, self.pan_blocks, reversed(down)):
            outputs.append(fuse(downsample(outputs[-1]) + feature_map))
        return BaseModelOutput(last_hidden_state=outputs)


class DEIMv2LiteEncoder(nn.Module):
    """Two levels from one map: the second is its half, with the mean over the image added."""

    def __init__(self, config):
        super().__init__()
        width = config.encoder_hidden_dim
        self.down_sample1 = DEIMv2Downsample(config)
        self.down_sample2 = DEIMv2Downsample(config)
        self.bi_fusion = DFineConvNormLayer(config, width, width, 1, 1, activation=config.activation_function)
        self.fpn_block = DEIMv2FusionBlock(config)
        self.pan_block = DEIMv2FusionBlock(config)

    def forward(self, inputs_embeds, **kwargs):
        (fine,) = inputs_embeds
        coarse = self.down_sample1(fine)
        coarse = self.bi_fusion(coarse + F.adaptive_avg_pool2d(coarse, 1))
        fine = self.fpn_block(fine + _doubled(coarse))
        coarse = self.pan_block(coarse + self.down_sample2(fine))
        return BaseModelOutput(last_hidden_state=[fine, coarse])


class DEIMv2Downsample(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.encoder_hidden_dim
        self.pool = nn.AvgPool2d(kernel_size=3, stride=2, padding=1)
        self.conv = DFineConvNormLayer(config, width, width, 1, 1, activation=config.activation_function)

    def forward(self, feature_map):
        return self.conv(self.pool(feature_map))


def _doubled(feature_map):
    return F.interpolate(feature_map, scale_factor=2.0, mode="nearest")


class DEIMv2SwiGLU(nn.Module):
    """Feed-forward layer whose gate and value come from one linear layer."""

    def __init__(self, width, hidden):
        super().__init__()
        self.gate_and_value = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, hidden_states):
        gate, value = self.gate_and_value(hidden_states).chunk(2, -1)
        return self.out(F.silu(gate) * value)


class DEIMv2DecoderLayer(nn.Module):
    """Self-attention among queries, cross-attention to the maps, SwiGLU; RMS norms behind the sums."""

    def __init__(self, config):
        super().__init__()
        width = config.d_model
        self.self_attn = DEIMv2Attention(width, config.decoder_attention_heads)
        self.self_attn_layer_norm = DEIMv2RMSNorm(width)
        self.encoder_attn = DFineMultiscaleDeformableAttention(config)
        if config.use_gateway:
            self.gateway = DFineGate(width)
            self.gateway.norm = DEIMv2RMSNorm(width)
        else:
            self.encoder_attn_layer_norm = DEIMv2RMSNorm(width)
        self.mlp = DEIMv2SwiGLU(width, config.decoder_ffn_dim // 2)
        self.final_layer_norm = DEIMv2RMSNorm(width)
        self.has_gateway = config.use_gateway

    def forward(self, hidden_states, position_embeddings, attention_mask, **maps):
        hidden_states = self.self_attn_layer_norm(
            hidden_states + self.self_attn(hidden_states, position_embeddings, attention_mask)
        )
        attended, _ = self.encoder_attn(hidden_states=hidden_states + position_embeddings, **maps)
        if self.has_gateway:
            hidden_states = self.gateway(hidden_states, attended)
        else:
            hidden_states = self.encoder_attn_layer_norm(hidden_states + attended)
        hidden_states = hidden_states + self.mlp(hidden_states)
        return self.final_layer_norm(hidden_states.clamp(min=-65504, max=65504))


class DEIMv2Decoder(DFineDecoder):
    """
    Decoder with fine-grained distribution refinement. Arguments and outputs are those of D-FINE's; a shared head
    stands once in its list.
    """

    def __init__(self, config: DEIMv2Config):
        DFinePreTrainedModel.__init__(self, config)
        width, layers, act = config.d_model, config.decoder_layers, config.head_activation_function
        self.max_num_bins = config.max_num_bins
        self.layers = nn.ModuleList([DEIMv2DecoderLayer(config) for _ in range(layers)])
        self.query_pos_head = DFineMLP(4, width, width, 3, act)
        self.pre_bbox_head = DFineMLP(width, width, 4, 3, act)
        self.integral = DFineIntegral(config)
        self.reg_scale = nn.Parameter(torch.tensor([config.reg_scale]), requires_grad=False)
        self.up = nn.Parameter(torch.tensor([config.up]), requires_grad=False)
        self.lqe_layers = nn.ModuleList([DFineLQE(config) for _ in range(layers)])
        for estimator in self.lqe_layers:
            estimator.reg_conf.act = ACT2FN[act]
        self.class_embed = nn.ModuleList(
            [nn.Linear(width, config.num_labels) for _ in range(1 if config.share_score_head else layers)]
        )
        self.bbox_embed = nn.ModuleList(
            [
                DFineMLP(width, width, 4 * (config.max_num_bins + 1), 3, act)
                for _ in range(1 if config.share_bbox_head else layers)
            ]
        )
        self.post_init()

    def forward(
        self,
        encoder_hidden_states,
        reference_points,
        inputs_embeds,
        spatial_shapes,
        spatial_shapes_list=None,
        encoder_attention_mask=None,
        **kwargs,
    ):
        hidden_states, last = inputs_embeds, len(self.layers) - 1
        before = corners = 0
        bins = weighting_function(self.max_num_bins, self.up, self.reg_scale)
        points = F.sigmoid(reference_points)
        positions = self.query_pos_head(points).clamp(min=-10, max=10)
        found = {"hidden": [], "logits": [], "boxes": [], "corners": [], "initial": []}
        for index, layer in enumerate(self.layers):
            hidden_states = layer(
                hidden_states,
                positions,
                encoder_attention_mask,
                reference_points=points.unsqueeze(2),
                encoder_hidden_states=encoder_hidden_states,
                spatial_shapes=spatial_shapes,
                spatial_shapes_list=spatial_shapes_list,
            )
            is_answer = self.training or index == last
            if index == 0:
                first_boxes = F.sigmoid(self.pre_bbox_head(hidden_states) + inverse_sigmoid(points))
                initial = first_boxes.detach()
            if index == 0 and is_answer:
                found["logits"].append(self.class_embed[0](hidden_states))
                found["boxes"].append(first_boxes)
            corners = _of(self.bbox_embed, index)(hidden_states + before) + corners
            boxes = distance2bbox(initial, self.integral(corners, bins), self.reg_scale)
            points, before = boxes.detach(), hidden_states.detach()
            found["hidden"].append(hidden_states)
            if is_answer:
                scores = _of(self.class_embed, index)(hidden_states)
                found["logits"].append(self.lqe_layers[index](scores, corners))
                found["boxes"].append(boxes)
                found["corners"].append(corners)
                found["initial"].append(initial)
        return DFineDecoderOutput(
            last_hidden_state=hidden_states,
            intermediate_hidden_states=torch.stack(found["hidden"]),
            intermediate_logits=torch.stack(found["logits"], 1),
            intermediate_reference_points=torch.stack(found["boxes"], 1),
            intermediate_predicted_corners=torch.stack(found["corners"], 1),
            initial_reference_points=torch.stack(found["initial"], 1),
        )


def _of(heads, index):
    return heads[min(index, len(heads) - 1)]


class DEIMv2Model(DFineModel):
    """
    Backbone, encoder and decoder; `forward` is that of `transformers.DFineModel`.

    Example:

        >>> import torch
        >>> import hgnetv2_hf
        >>> backbone = hgnetv2_hf.HGNetV2Config.from_variant("b0", out_features=["stage2", "stage3", "stage4"])
        >>> config = hgnetv2_hf.DEIMv2Config(
        ...     backbone_config=backbone, encoder_in_channels=[256, 512, 1024], num_queries=20
        ... )
        >>> hgnetv2_hf.DEIMv2Model(config).eval()(torch.zeros(1, 3, 64, 64)).last_hidden_state.shape
        torch.Size([1, 20, 256])
    """

    config_class = DEIMv2Config

    def __init__(self, config: DEIMv2Config):
        DFinePreTrainedModel.__init__(self, config)
        width = config.encoder_hidden_dim
        self.backbone = DFineConvEncoder(config)
        self.encoder_input_proj = nn.ModuleList(
            [_projection(channels, width) for channels in config.encoder_in_channels]
        )
        is_lite = config.encoder_type == "lite"
        self.encoder = DEIMv2LiteEncoder(config) if is_lite else DEIMv2HybridEncoder(config)
        if config.num_denoising > 0:
            self.denoising_class_embed = nn.Embedding(
                config.num_labels + 1, config.d_model, padding_idx=config.num_labels
            )
        if config.learn_initial_query:
            self.weight_embedding = nn.Embedding(config.num_queries, config.d_model)
        self.enc_output = nn.Identity()  # what D-FINE has here
        self.enc_score_head = nn.Linear(config.d_model, config.num_labels)
        self.enc_bbox_head = DFineMLP(config.d_model, config.d_model, 4, 3, config.head_activation_function)
        if config.anchor_image_size:
            self.anchors, self.valid_mask = self.generate_anchors(dtype=self.dtype)
        self.decoder_input_proj = nn.ModuleList(
            [_projection(channels, config.d_model) for channels in config.decoder_in_channels]
        )
        self.decoder = DEIMv2Decoder(config)
        self.post_init()


def _projection(channels, width):
    if channels == width:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, width, kernel_size=1, bias=False), nn.BatchNorm2d(width))


class DEIMv2ForObjectDetection(DEIMForObjectDetection):
    """
    DEIMv2's detectors with HGNetV2. Arguments and outputs of `forward` are those of
    `transformers.DFineForObjectDetection`, but `labels`, which it refuses.

    Example:

        >>> import torch
        >>> import hgnetv2_hf
        >>> backbone = hgnetv2_hf.HGNetV2Config.from_variant("pico")
        >>> config = hgnetv2_hf.DEIMv2Config(
        ...     backbone_config=backbone, encoder_type="lite", encoder_in_channels=[512], encoder_hidden_dim=112,
        ...     feat_strides=[16, 32], d_model=112, decoder_in_channels=[112, 112], num_feature_levels=2,
        ...     decoder_n_points=[4, 2], decoder_layers=3, decoder_ffn_dim=320, num_queries=20, num_labels=2,
        ...     use_gateway=False, share_bbox_head=True,
        ... )
        >>> model = hgnetv2_hf.DEIMv2ForObjectDetection(config).eval()
        >>> model(torch.zeros(1, 3, 64, 64)).pred_boxes.shape
        torch.Size([1, 20, 4])
    """

    config_class = DEIMv2Config

    def __init__(self, config: DEIMv2Config):
        DFinePreTrainedModel.__init__(self, config)
        self.model = DEIMv2Model(config)
        self.loss_function = refuse_to_train
        self.post_init()


__all__ = ["DEIMv2ForObjectDetection", "DEIMv2Model"]
