"""Whole detectors: from the files of D-FINE, RT-DETRv2 and PaddleDetection to models of Transformers."""

import contextlib
import json
import re

import torch
import transformers

from ..errors import ConversionError
from ..hub.published import ASSETS
from ..model.configuration_hgnetv2 import HGNetV2Config, PPHGNetV2Config
from ..wording import counted, sentence
from .anchors import image_size_of
from .architecture import Shapes, name_variant, recognise_architecture
from .assumptions import assume_trunk
from .detectors import DETECTORS, rename_detector
from .families import decide_family
from .layouts import LAYOUTS, is_counter
from .values import checked_weight, with_memory_of_their_own


_MODELS = {
    "d_fine": ("DFineConfig", "DFineForObjectDetection"),
    "rt_detr": ("RTDetrConfig", "RTDetrForObjectDetection"),
    "rt_detr_v2": ("RTDetrV2Config", "RTDetrV2ForObjectDetection"),
}
# D-FINE's published depths and widths of the neck: bottlenecks per block and width ratio do not show the factors.
_DEPTH_MULT = {1: 0.34, 2: 0.67, 3: 1.0}
_HIDDEN_EXPANSION = (0.34, 0.5, 1.0)
# Assumed fields that belong to the backbone, the image processor or to no configuration at all.
_NOT_OF_THE_DETECTOR = (
    "hidden_act",
    "stem_strides",
    "stage_downsample_strides",
    "image_size",
    "resample",
    "head activation",
)
_COMPUTED_HERE = r"(\.num_batches_tracked|\.n(um)?_points_scale)$"  # Transformers fills them in by itself


def read_detector(source, key, content, family=None):
    """
    Args:
        source ([`Source`]): the file.
        key (`str`): the row of [`DETECTORS`] that it belongs to.
        content (`dict[str, torch.Tensor]`): its tensors, under its program's names.
        family (`str`, *optional*): which of the programs with D-FINE's tensors it comes from (see `families.py`).

    Returns:
        `tuple`: model, image processor's configuration, backbone's variant, assumed fields, what was left out.

    Raises:
        `ConversionError`: Transformers cannot express its family, a tensor is missing or unknown, or parts do not fit.
    """
    detector = DETECTORS[key]
    tensors, backbone = rename_detector(content, detector)
    fields = recognise_architecture(backbone)
    if fields["num_channels"] != 3:
        raise ConversionError(
            f"The detector takes images of {counted(fields['num_channels'], 'channel')}; its image processor in "
            "Transformers gives 3: only its network converts (--task backbone)."
        )
    shapes = Shapes(tensors)
    assumed = {**assume_trunk(fields), **_assumed(detector)}
    if key == "dfine":
        _, reason = decide_family(source, content, name_variant(fields), family)
        assumed["head activation"] = ("relu", reason)
    values = _common_fields(shapes)
    values.update({field: value for field, (value, _) in assumed.items() if field not in _NOT_OF_THE_DETECTOR})
    for field in ("encode_proj_layers", "feat_strides"):
        assumed[field] = (values[field], f"every published {detector.title}: the backbone's last stages")
    if detector.anchors in content:
        size = _image_size(content[detector.anchors], values["feat_strides"])
        assumed["image_size"] = (size, "the anchors in the file")
    values.update(_FAMILIES[detector.model_type](shapes, content, values, assumed))
    values["backbone_config"] = _backbone_config(fields, detector, values, assumed)
    values.update(_labels(values.pop("num_labels"), assumed))
    if detector.is_paddle:
        _add_padding_class(tensors)
    # up and reg_scale are whole numbers in some files
    tensors = {name: t if is_counter(name) else checked_weight(name, t) for name, t in tensors.items()}
    model = _load(detector, values, with_memory_of_their_own(tensors))
    computed = sum(any(re.search(pattern, name) for pattern in detector.computed) for name in content)
    what = counted(computed, "counter or constant", "counters and constants")
    left_out = [f"{what} that the network computes itself"] if computed else []
    return model, _image_processor(detector, assumed), name_variant(fields), assumed, left_out


def _assumed(detector):
    """What no tensor of any of the published detectors shows of its neck and decoder."""
    reason = f"every published {detector.title}"
    assumed = {
        "num_queries": (300, reason),
        "encoder_attention_heads": (8, reason),
        "decoder_attention_heads": (8, reason),
        "encoder_activation_function": ("gelu", reason),
        "activation_function": ("silu", f"{reason}: the neck"),
        "decoder_activation_function": ("relu", reason),
        "positional_encoding_temperature": (10000, reason),
        "normalize_before": (False, reason),
        "learn_initial_query": (False, reason),
        "image_size": ([640, 640], reason),
        "resample": (3 if detector.is_paddle else 2, f"{reason}: {'bicubic' if detector.is_paddle else 'bilinear'}"),
    }
    if detector.model_type != "rt_detr":
        assumed["decoder_offset_scale"] = (0.5, reason)
        assumed["decoder_method"] = ("default", reason)
    if detector.model_type == "d_fine":
        assumed["eval_idx"] = (-1, reason)
        assumed["layer_scale"] = (1.0, reason)
    return assumed


def _common_fields(shapes):
    """Widths and depths that the three families share."""
    levels = shapes.count("model.encoder_input_proj")
    hidden = shapes.of("model.encoder_input_proj.0.0.weight", 4)[0]
    return {
        "num_labels": shapes.of("model.enc_score_head.weight", 2)[0],
        "num_feature_levels": levels,
        "encoder_in_channels": [shapes.of(f"model.encoder_input_proj.{i}.0.weight", 4)[1] for i in range(levels)],
        "encoder_hidden_dim": hidden,
        "encoder_layers": shapes.count("model.encoder.encoder.0.layers"),
        "encoder_ffn_dim": shapes.of("model.encoder.encoder.0.layers.0.fc1.weight", 2)[0],
        "encode_proj_layers": list(range(levels - shapes.count("model.encoder.encoder"), levels)),
        "feat_strides": [32 // 2 ** (levels - 1 - i) for i in range(levels)],  # of the backbone's last stages
        "decoder_in_channels": [hidden] * levels,
        "d_model": shapes.of("model.enc_output.0.weight", 2)[0],
        "decoder_layers": shapes.count("model.decoder.layers"),
        "decoder_ffn_dim": shapes.of("model.decoder.layers.0.fc1.weight", 2)[0],
    }


def _image_size(anchors, strides):
    height, width = image_size_of(anchors, strides)
    if height != width:
        raise ConversionError(
            f"The anchors in the file are those of {height}×{width} pixels (height × width); Transformers 5 gives the "
            "encoder of a detector other positions than the original does where images are not square, so only square "
            "ones convert; --task backbone converts the backbone."
        )
    return [height, width]


def _dfine_fields(shapes, content, common, assumed):
    block = "model.encoder.fpn_blocks.0.csp_rep1"
    bottlenecks = shapes.count(f"{block}.bottlenecks")
    width = shapes.of(f"{block}.conv1.conv.weight", 4)[0]
    hidden = common["encoder_hidden_dim"]
    expansion = next((each for each in _HIDDEN_EXPANSION if round(each * hidden // 2) == width), 2 * width / hidden)
    scale = content.get("decoder.decoder.layers.0.cross_attn.num_points_scale")
    if scale is not None:
        points = _points(scale)
    else:
        points = {2: [6, 6], 3: [3, 6, 3]}.get(common["num_feature_levels"])
        assumed["decoder_n_points"] = (points, "published D-FINE with as many feature levels")
    fields = {
        "hidden_expansion": expansion,
        "depth_mult": _DEPTH_MULT.get(bottlenecks, bottlenecks / 3),
        "decoder_n_points": points,
        "lqe_layers": shapes.count("model.decoder.lqe_layers.0.reg_conf.layers"),
        "lqe_hidden_dim": shapes.of("model.decoder.lqe_layers.0.reg_conf.layers.0.weight", 2)[0],
        "top_prob_values": shapes.of("model.decoder.lqe_layers.0.reg_conf.layers.0.weight", 2)[1] // 4 - 1,
        "max_num_bins": shapes.of("model.decoder.bbox_embed.0.layers.2.weight", 2)[0] // 4 - 1,
    }
    for name, published in (("up", 0.5), ("reg_scale", 4.0)):
        tensor = shapes.tensors.get(f"model.decoder.{name}")
        if tensor is not None and tensor.numel() == 1:
            fields[name] = float(tensor)
        else:
            assumed[name] = (published, "published D-FINE but X, which has a reg_scale of 8; not in the file")
            fields[name] = published
            shapes.tensors[f"model.decoder.{name}"] = torch.tensor([published])
    return fields


def _points(scale):
    """Sampling points per level from the constant that repeats ``1 / points`` for each of them."""
    values, points = [float(value) for value in scale.flatten()[:1000]], []
    while sum(points) < len(values):
        value = values[sum(points)]
        points.append(round(1 / value) if 0 < value <= 1 else len(values) + 1)
    if sum(points) != len(values):
        raise ConversionError("The constant num_points_scale does not say how many points each level has.")
    return points


def _rtdetr_fields(shapes, content, common, assumed):
    bottlenecks = shapes.count("model.encoder.fpn_blocks.0.bottlenecks")
    if bottlenecks != 3:
        raise ConversionError(
            f"The neck has {counted(bottlenecks, 'bottleneck')} in a block; Transformers' RT-DETR has 3."
        )
    width = shapes.of("model.encoder.fpn_blocks.0.conv1.conv.weight", 4)[0]
    offsets = shapes.of("model.decoder.layers.0.encoder_attn.sampling_offsets.weight", 2)[0]
    return {
        "hidden_expansion": width / common["encoder_hidden_dim"],
        "decoder_n_points": offsets // (2 * assumed["decoder_attention_heads"][0] * common["num_feature_levels"]),
    }


_FAMILIES = {"d_fine": _dfine_fields, "rt_detr": _rtdetr_fields, "rt_detr_v2": _rtdetr_fields}


def _backbone_config(fields, detector, values, assumed):
    widths = fields["stage_out_channels"]
    levels = values["num_feature_levels"]
    if values["encoder_in_channels"] != widths[-levels:]:
        raise ConversionError(
            f"The neck takes maps of {values['encoder_in_channels']} channels; the backbone's last stages have "
            f"{widths[-levels:]}."
        )
    stages = [f"stage{i + 1}" for i in range(len(widths))]
    padding = LAYOUTS[detector.backbone_layout].pool_padding
    trunk = {name: assumed[name][0] for name in ("hidden_act", "stem_strides")}
    config_class = HGNetV2Config
    if fields["use_learnable_affine_block"]:
        assumed["pool_padding"] = (padding, f"as in {detector.title}")
        if padding == "same":
            config_class = PPHGNetV2Config
    try:
        config = config_class(**fields, **trunk, out_features=stages[-levels:])
    except ValueError as error:
        raise ConversionError(f"The backbone's tensors do not form a network: {error}") from error
    config.set_compatibility_fields()
    return config


def _labels(num_labels, assumed):
    if num_labels != 80:
        return {"num_labels": num_labels}
    assumed["labels"] = ("coco", "80 classes")
    names = json.loads((ASSETS / "labels_coco.json").read_text(encoding="utf-8"))
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def _add_padding_class(tensors):
    """Transformers gives "no object" a row among the denoising classes; PaddleDetection has none and needs none."""
    name = "model.denoising_class_embed.weight"
    if name in tensors:
        tensors[name] = torch.cat([tensors[name], torch.zeros(1, tensors[name].shape[1])])


def _load(detector, values, tensors):
    config_name, model_name = _MODELS[detector.model_type]
    try:
        config = getattr(transformers, config_name)(**values)
        tensors = {name: t for name, t in tensors.items() if not (is_counter(name) and ".backbone." in name)}
        with _quietly():
            model, info = getattr(transformers, model_name).from_pretrained(
                None, config=config, state_dict=tensors, output_loading_info=True
            )
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        reason = sentence(error)[:300]
        raise ConversionError(f"The tensors do not form a {detector.title} detector: {reason}") from error
    missing = sorted(name for name in info["missing_keys"] if not re.search(_COMPUTED_HERE, name))
    unexpected = sorted(info["unexpected_keys"])
    wrong = sorted(str(each) for each in info["mismatched_keys"])
    for what, names in (("lacks", missing), ("holds what the network does not have:", unexpected), ("misfits", wrong)):
        if names:
            rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ConversionError(f"The file {what} {', '.join(names[:3])}{rest}.")
    return model.eval()


@contextlib.contextmanager
def _quietly():
    """Transformers reports every tensor that it fills in by itself; what matters is checked below."""
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


def _image_processor(detector, assumed):
    """The configuration of stock Transformers' processor that fits: a plain resize, and values in 0…1.

    Written as data, because the class behind the name differs between library lines and needs torchvision in some.
    """
    height, width = assumed["image_size"][0]
    return {
        "image_processor_type": "RTDetrImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": assumed["resample"][0],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "do_pad": False,
    }
