"""Detectors with fresh weights: the published sizes of each family as configurations.

Sources: D-FINE ``configs/dfine/dfine_hgnetv2_*_coco.yml``, RT-DETR
``rtdetrv2_pytorch/configs/rtdetrv2/rtdetrv2_hgnetv2_*_6x_coco.yml``, PaddleDetection ``configs/rtdetr``, DEIMv2
``configs/deimv2/deimv2_hgnetv2_*_coco.yml``.
"""

import os

import transformers

from ...backbone import read_backbone
from ...errors import TrainingError
from ...hub.published import published_name
from ...model.configuration_deim import DEIMConfig, DEIMv2Config
from ...model.configuration_hgnetv2 import HGNetV2Config
from ...model.modeling_deim import DEIMForObjectDetection
from ...model.modeling_deimv2 import DEIMv2ForObjectDetection
from ...wording import sentence


# Backbone, its stages that are used, width and feed-forward width of the encoder, and fields of the configuration.
_DFINE = {
    #     variant levels hidden  ffn
    "n": ("b0", 2, 128, 512, {
        "d_model": 128, "decoder_ffn_dim": 512, "decoder_layers": 3, "decoder_n_points": [6, 6],
        "hidden_expansion": 0.34, "depth_mult": 0.5,
    }),
    "s": ("b0", 3, 256, 1024, {"decoder_layers": 3, "hidden_expansion": 0.5, "depth_mult": 0.34}),
    "m": ("b2", 3, 256, 1024, {"decoder_layers": 4, "depth_mult": 0.67}),
    "l": ("b4", 3, 256, 1024, {"decoder_layers": 6, "depth_mult": 1.0}),
    "x": ("b5", 3, 384, 2048, {"decoder_layers": 6, "depth_mult": 1.0, "reg_scale": 8.0}),
}  # fmt: skip
_RTDETR = {
    "l": ("b4", 3, 256, 1024, {}),
    "x": ("b5", 3, 384, 2048, {}),
    "h": ("b6", 3, 512, 2048, {"encoder_layers": 2}),
}
_DEIMV2 = {
    "atto": ("atto", 1, 64, 1024, {"d_model": 64, "decoder_ffn_dim": 160}),
    "femto": ("femto", 1, 96, 1024, {"d_model": 96, "decoder_ffn_dim": 256}),
    "pico": ("pico", 1, 112, 1024, {"d_model": 112, "decoder_ffn_dim": 320}),
    "n": ("b0", 2, 128, 512, {
        "d_model": 128, "decoder_ffn_dim": 512, "decoder_layers": 3, "decoder_n_points": [6, 6],
        "hidden_expansion": 0.34, "depth_mult": 0.5, "encoder_block": "elan4",
    }),
    "s": ("b0", 3, 256, 1024, {
        "decoder_layers": 3, "hidden_expansion": 0.5, "depth_mult": 0.34, "encoder_block": "elan4",
        "decoder_ffn_dim": 2048,
    }),
    "m": ("b2", 3, 256, 1024, {"decoder_layers": 4, "depth_mult": 0.67, "decoder_ffn_dim": 2048}),
    "l": ("b4", 3, 256, 1024, {"decoder_layers": 6, "depth_mult": 1.0, "decoder_ffn_dim": 2048}),
    "x": ("b5", 3, 384, 2048, {"decoder_layers": 6, "depth_mult": 1.0, "decoder_ffn_dim": 2048, "reg_scale": 8.0}),
}  # fmt: skip
_FAMILIES = {
    "dfine": (transformers.DFineConfig, transformers.DFineForObjectDetection, _DFINE),
    "rtdetr": (transformers.RTDetrConfig, transformers.RTDetrForObjectDetection, _RTDETR),
    "rtdetrv2": (transformers.RTDetrV2Config, transformers.RTDetrV2ForObjectDetection, _RTDETR),
    "deim": (DEIMConfig, DEIMForObjectDetection, _DFINE),
    "rtdetrv4": (DEIMConfig, DEIMForObjectDetection, {size: row for size, row in _DFINE.items() if size != "n"}),
    "deimv2": (DEIMv2Config, DEIMv2ForObjectDetection, _DEIMV2),
}
NAMES = tuple(f"{family}-{size}" for family, (_, _, sizes) in _FAMILIES.items() for size in sizes)


def build_detector(name, backbone=None, trains_batch_norm=True, **fields):
    """
    Args:
        name (one of `NAMES`): `"dfine-n"`, … `"deimv2-x"`.
        backbone (`str`, *optional*): a classifier's or backbone's folder, a weight file or a published name, whose
            weights and widths the detector gets; by default fresh weights of the published variant.
        trains_batch_norm (`bool`, defaults to `True`): otherwise the backbone's is frozen.
        fields: of the configuration (`num_labels`, `id2label`, …).

    Returns:
        `PreTrainedModel`: the detector; its heads are fresh.

    Raises:
        `TrainingError`: there is no such backbone, or it does not fit.
    """
    family, size = name.split("-")
    config_class, model_class, sizes = _FAMILIES[family]
    variant, levels, hidden, ffn, own = sizes[size]
    loaded = None if backbone is None else _load_backbone(backbone)
    config = HGNetV2Config.from_variant(variant) if loaded is None else loaded.config
    stages = [f"stage{index + 1}" for index in range(len(config.stage_out_channels))]
    config.out_features = stages[-levels:]
    values = {
        "encoder_hidden_dim": hidden,
        "encoder_ffn_dim": ffn,
        "encoder_in_channels": list(config.stage_out_channels[-levels:]),
        "decoder_in_channels": [hidden] * levels,
        "num_feature_levels": levels,
        "feat_strides": [32 // 2 ** (levels - 1 - index) for index in range(levels)],
        "encode_proj_layers": [levels - 1],
        "decoder_n_points": 4 if family in ("rtdetr", "rtdetrv2") else [3, 6, 3],
        "freeze_backbone_batch_norms": not trains_batch_norm,
        **(_lite_fields(hidden) if levels == 1 else {}),
        **own,
        **fields,
    }
    try:
        model = model_class(config_class(backbone_config=config, **values))
    except (ValueError, RuntimeError) as error:
        raise TrainingError(f"{backbone} does not fit {name}: {sentence(error)[:200]}") from error
    if loaded is not None:
        places = model.model.backbone.model.state_dict()
        for tensor_name, tensor in loaded.state_dict().items():
            if tensor_name in places:
                places[tensor_name].copy_(tensor)
    return model


def _lite_fields(hidden):
    """What DEIMv2's Atto, Femto and Pico have in common: two levels from the backbone's third and last stage."""
    return {
        "encoder_type": "lite",
        "encoder_block": "elan4",
        "encoder_layers": 0,
        "encode_proj_layers": [],
        "feat_strides": [16, 32],
        "num_feature_levels": 2,
        "decoder_in_channels": [hidden, hidden],
        "decoder_n_points": [4, 2],
        "decoder_layers": 3,
        "hidden_expansion": 0.34,
        "depth_mult": 0.5,
        "use_gateway": False,
        "share_bbox_head": True,
    }


def _load_backbone(name):
    if not os.path.exists(name) and "/" not in str(name) and published_name(str(name)) is None:
        raise TrainingError(f"There is no backbone {name}; expected a folder, a weight file or a published name.")
    try:
        return read_backbone(str(name))
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(f"{name} is no backbone that can be loaded: {sentence(error)[:300]}") from error
