"""Whole detectors: from the files of D-FINE, its families, RT-DETRv2 and PaddleDetection to models of Transformers."""

import contextlib
import importlib
import json
import re

import torch
import transformers

from ..errors import ConversionError
from ..hub.published import ASSETS
from ..model.configuration_hgnetv2 import HGNetV2Config, PPHGNetV2Config
from ..model.heads import with_both_names
from ..wording import counted, sentence
from .anchors import image_size_of
from .architecture import Shapes, name_variant, recognise_architecture
from .assumptions import assume_trunk, declared_labels
from .detectors import DETECTORS, TRAINING_ONLY, rename_detector
from .families import decide_family
from .layouts import LAYOUTS, is_counter
from .values import checked_weight, with_memory_of_their_own


_MODELS = {  # configuration and model, and where they are
    "d_fine": ("transformers", "DFineConfig", "DFineForObjectDetection"),
    "rt_detr": ("transformers", "RTDetrConfig", "RTDetrForObjectDetection"),
    "rt_detr_v2": ("transformers", "RTDetrV2Config", "RTDetrV2ForObjectDetection"),
    "deim": ("hgnetv2_hf.model.modeling_deim", "DEIMConfig", "DEIMForObjectDetection"),
    "deim_v2": ("hgnetv2_hf.model.modeling_deimv2", "DEIMv2Config", "DEIMv2ForObjectDetection"),
}
# D-FINE's published depths and widths of the neck: bottlenecks per block and width ratio do not show the factors.
_DEPTH_MULT = {1: 0.34, 2: 0.67, 3: 1.0}
_HIDDEN_EXPANSION = (0.34, 0.5, 0.67, 1.0)
# Of DEIMv2: queries and pixels per side by the backbone, where the file does not show them.
_DEIMV2_SIZES = {"atto": (100, 320), "femto": (150, 416), "pico": (200, 640)}
_POINTS = {(2, 12): [6, 6], (2, 6): [4, 2], (3, 12): [3, 6, 3]}  # by the number of levels and of points
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


def read_detector(source, key, content, family=None, num_queries=None):
    """
    Args:
        source ([`Source`]): the file.
        key (`str`): the row of [`DETECTORS`] that it belongs to.
        content (`dict[str, torch.Tensor]`): its tensors, under its program's names.
        family (`str`, *optional*): which of the programs with D-FINE's tensors it comes from (see `families.py`).
        num_queries (`int`, *optional*): by default that of the published detectors.

    Returns:
        `tuple`: the row's key, of the family where that decides; model, image processor's configuration, backbone's
        variant, assumed fields, what was left out.

    Raises:
        `ConversionError`: nothing shows its family, a tensor is missing or unknown, or parts do not fit.
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
    variant, reason = name_variant(fields), None
    if key == "dfine" or family is not None:
        key, reason = decide_family(source, content, variant, family)
        detector = DETECTORS[key]
    assumed = {**assume_trunk(fields), **_assumed(detector, variant)}
    if source.row is not None and source.row.image_size:
        assumed["image_size"] = ([source.row.image_size] * 2, f"published with {source.name}")
    assumed.update({field: pair for field, pair in source.declared.items() if field in assumed})
    if reason is not None:
        field = "head activation" if key == "dfine" else "head_activation_function"
        assumed[field] = (assumed["decoder_activation_function"][0], reason)
    if num_queries is not None:
        assumed["num_queries"] = (num_queries, "option")
    values = _deimv2_fields(shapes, fields) if key == "deimv2" else _common_fields(shapes)
    values.update({field: value for field, (value, _) in assumed.items() if field not in _NOT_OF_THE_DETECTOR})
    for field in ("encode_proj_layers", "feat_strides"):
        assumed[field] = (values[field], f"every published {detector.title}: the backbone's last stages")
    if detector.anchors in content:
        size = _image_size(content[detector.anchors], values["feat_strides"], detector)
        if source.declared.get("image_size", (size,))[0] != size:
            raise ConversionError(
                f"{source.declared['image_size'][1]}: images of {source.declared['image_size'][0]} pixels (height, "
                f"width), but the anchors in the file are those of {size}."
            )
        assumed["image_size"] = (size, "the anchors in the file")
    values["num_queries"] = _queries(assumed, values["feat_strides"])
    values.update(_OWN_FIELDS[detector.model_type](shapes, content, values, assumed))
    values["backbone_config"] = _backbone_config(fields, detector, values, assumed)
    values.update(_labels(source, values.pop("num_labels"), assumed))
    if detector.is_paddle:
        _add_padding_class(tensors)
    # up and reg_scale are whole numbers in some files
    tensors = {name: t if is_counter(name) else checked_weight(name, t) for name, t in tensors.items()}
    model = _load(detector, values, with_memory_of_their_own(tensors))
    return key, model, _image_processor(detector, assumed), variant, assumed, _left_out(content, detector)


def _queries(assumed, strides):
    """How many: they are chosen among the places of the feature maps, so there are no more."""
    (height, width), _ = assumed["image_size"]
    places = sum((height // stride) * (width // stride) for stride in strides)
    queries, reason = assumed["num_queries"]
    if queries > places and reason == "option":
        raise ConversionError(f"An image of {height}×{width} pixels has {places} places for queries, not {queries}.")
    if queries > places:
        assumed["num_queries"] = (places, "as many as an image of this size has places for")
    return assumed["num_queries"][0]


def _left_out(content, detector):
    computed = [name for name in content if any(re.search(pattern, name) for pattern in detector.computed)]
    training_only = sorted(name for name in computed if name.startswith(TRAINING_ONLY))
    what = counted(len(computed) - len(training_only), "counter or constant", "counters and constants")
    left_out = [f"{what} that the network computes itself"] if len(computed) > len(training_only) else []
    if training_only:
        left_out.append(f"{', '.join(training_only)}: RT-DETRv4 uses them in training only")
    return left_out


def _assumed(detector, variant):
    """What no tensor of any of the published detectors shows of its neck and decoder."""
    reason = f"every published {detector.title}"
    queries, pixels = _DEIMV2_SIZES.get(variant, (300, 640)) if detector.model_type == "deim_v2" else (300, 640)
    head = "relu" if detector.model_type in ("d_fine", "rt_detr", "rt_detr_v2") else "silu"
    assumed = {
        "num_queries": (queries, reason),
        "encoder_attention_heads": (8, reason),
        "decoder_attention_heads": (8, reason),
        "encoder_activation_function": ("gelu", reason),
        "activation_function": ("silu", f"{reason}: the neck"),
        "decoder_activation_function": (head, reason),
        "positional_encoding_temperature": (10000, reason),
        "normalize_before": (False, reason),
        "learn_initial_query": (False, reason),
        "image_size": ([pixels, pixels], reason),
        "resample": (3 if detector.is_paddle else 2, f"{reason}: {'bicubic' if detector.is_paddle else 'bilinear'}"),
    }
    if detector.model_type != "rt_detr":
        assumed["decoder_offset_scale"] = (0.5, reason)
        assumed["decoder_method"] = ("default", reason)
    if detector.model_type == "deim_v2":
        assumed["head_activation_function"] = (head, reason)
    if detector.model_type in ("d_fine", "deim", "deim_v2"):
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


def _deimv2_fields(shapes, backbone):
    """The same of DEIMv2, whose projections are missing where widths agree already."""
    is_lite = "model.encoder.bi_fusion.conv.weight" in shapes.tensors
    levels = 1 if is_lite else shapes.count("model.encoder.lateral_convs") + 1
    widths = backbone["stage_out_channels"]
    coarsest = 2 ** (len(widths) + 1)
    strides = [coarsest // 2 ** (levels - 1 - index) for index in range(levels)] + [2 * coarsest] * is_lite
    first = "bi_fusion" if is_lite else "lateral_convs.0"
    hidden = shapes.of(f"model.encoder.{first}.conv.weight", 4)[0]
    layers = shapes.count("model.encoder.encoder.0.layers")
    encoded = shapes.count("model.encoder.encoder")
    return {
        "num_labels": shapes.of("model.enc_score_head.weight", 2)[0],
        "num_feature_levels": len(strides),
        "encoder_type": "lite" if is_lite else "hybrid",
        "encoder_in_channels": widths[-levels:],
        "encoder_hidden_dim": hidden,
        "encoder_layers": layers,
        "encoder_ffn_dim": shapes.of("model.encoder.encoder.0.layers.0.mlp.layers.0.weight", 2)[0] if layers else 1024,
        "encode_proj_layers": list(range(levels - encoded, levels)),
        "feat_strides": strides,
        "decoder_in_channels": [hidden] * len(strides),
        "d_model": shapes.of("model.enc_score_head.weight", 2)[1],
        "decoder_layers": shapes.count("model.decoder.layers"),
        "decoder_ffn_dim": shapes.of("model.decoder.layers.0.mlp.gate_and_value.weight", 2)[0],
    }


def _image_size(anchors, strides, detector):
    height, width = image_size_of(anchors, strides)
    if height != width and detector.model_type != "deim_v2":
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
    return {
        "hidden_expansion": expansion,
        "depth_mult": _DEPTH_MULT.get(bottlenecks, bottlenecks / 3),
        **_refinement_fields(shapes, content, common, assumed),
    }


def _deimv2_own_fields(shapes, content, common, assumed):
    block = "model.encoder." + ("fpn_block" if common["encoder_type"] == "lite" else "fpn_blocks.0")
    hidden = common["encoder_hidden_dim"]
    narrow = shapes.of(f"{block}.branch1.0.conv1.conv.weight", 4)[0] // 2
    bottlenecks = shapes.count(f"{block}.branch1.0.bottlenecks")
    expansion = next(
        (each for each in _HIDDEN_EXPANSION if round(each * hidden // 2) == narrow), (2 * narrow + 0.5) / hidden
    )
    return {
        "hidden_expansion": expansion,
        "depth_mult": _DEPTH_MULT.get(bottlenecks, bottlenecks / 3),
        "encoder_blocks": bottlenecks,
        "encoder_block": "elan4" if f"{block}.branch1.1.conv.weight" in shapes.tensors else "elan5",
        "use_gateway": "model.decoder.layers.0.gateway.gate.weight" in shapes.tensors,
        "share_bbox_head": _take_shared_heads(shapes.tensors, "bbox_embed", common["decoder_layers"]),
        "share_score_head": _take_shared_heads(shapes.tensors, "class_embed", common["decoder_layers"]),
        **_refinement_fields(shapes, content, common, assumed),
    }


def _take_shared_heads(tensors, name, layers):
    """Whether all layers have one head: a file holds it under the name of each, or of the first. It is kept once."""
    prefix, heads = f"model.decoder.{name}", {}
    for name in tensors:
        match = re.match(re.escape(prefix) + r"\.(\d{1,4})\.", name)
        if match:
            heads.setdefault(int(match[1]), {})[name[match.end() :]] = name
    if set(heads) not in ({0}, set(range(layers))) or layers == 1:
        return False
    first = heads.pop(0)
    for other in heads.values():
        if other.keys() != first.keys() or not all(
            torch.equal(tensors[first[part]], tensors[other[part]]) for part in first
        ):
            return False
    for other in heads.values():
        for name in other.values():
            del tensors[name]
    return True


def _refinement_fields(shapes, content, common, assumed):
    """What D-FINE and its families share: points of deformable attention, quality estimator, bins of the edges."""
    scale = _one_of(content, [each for each in content if each.endswith(".cross_attn.num_points_scale")])
    if scale is not None:
        points = _points(scale)
    else:
        levels, heads = common["num_feature_levels"], assumed["decoder_attention_heads"][0]
        offsets = shapes.of("model.decoder.layers.0.encoder_attn.sampling_offsets.weight", 2)[0]
        points = _POINTS.get((levels, offsets // (2 * heads)))
        assumed["decoder_n_points"] = (points, "published detectors with as many feature levels and points")
    fields = {
        "decoder_n_points": points,
        "lqe_layers": shapes.count("model.decoder.lqe_layers.0.reg_conf.layers"),
        "lqe_hidden_dim": shapes.of("model.decoder.lqe_layers.0.reg_conf.layers.0.weight", 2)[0],
        "top_prob_values": shapes.of("model.decoder.lqe_layers.0.reg_conf.layers.0.weight", 2)[1] // 4 - 1,
        "max_num_bins": shapes.of("model.decoder.bbox_embed.0.layers.2.weight", 2)[0] // 4 - 1,
    }
    for name, published in (("up", 0.5), ("reg_scale", 4.0)):
        tensor = _one_of(content, [each for each in (f"decoder.{name}", f"decoder.decoder.{name}") if each in content])
        if tensor is None:
            reason = "published detectors of this family but X, which has a reg_scale of 8; not in the file"
            assumed[name], tensor = (published, reason), torch.tensor([published])
        if tensor.numel() != 1 or not 0 < float(tensor) < float("inf"):
            raise ConversionError(f"The constant {name} is one positive number; the file has {tensor.tolist()}.")
        fields[name] = float(tensor)
        shapes.tensors[f"model.decoder.{name}"] = tensor.reshape(1)
    return fields


def _one_of(content, names):
    """The constant that a file holds under these names, ``None`` without any of them."""
    for name in names[1:]:
        if not torch.equal(content[name].double(), content[names[0]].double()):
            raise ConversionError(f"The file holds different values of one constant, {names[0]} and {name}.")
    return content[names[0]] if names else None


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


_OWN_FIELDS = {
    "d_fine": _dfine_fields,
    "deim": _dfine_fields,
    "deim_v2": _deimv2_own_fields,
    "rt_detr": _rtdetr_fields,
    "rt_detr_v2": _rtdetr_fields,
}


def _backbone_config(fields, detector, values, assumed):
    widths = fields["stage_out_channels"]
    levels = len(values["encoder_in_channels"])
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


def _labels(source, num_labels, assumed):
    if "id2label" in source.declared:
        named = declared_labels(source, num_labels)
        assumed["labels"], (names, _) = named["labels"], named["id2label"]
        return {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    labels, reason = ("coco", "80 classes") if num_labels == 80 else (None, None)
    if source.row is not None and source.row.labels:
        labels, reason = source.row.labels, f"published with {source.name}"
    names = json.loads((ASSETS / f"labels_{labels}.json").read_text(encoding="utf-8")) if labels else []
    if len(names) != num_labels:
        return {"num_labels": num_labels}
    assumed["labels"] = (labels, reason)
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def _add_padding_class(tensors):
    """Transformers gives "no object" a row among the denoising classes; PaddleDetection has none and needs none."""
    name = "model.denoising_class_embed.weight"
    if name in tensors:
        tensors[name] = torch.cat([tensors[name], torch.zeros(1, tensors[name].shape[1])])


def classes_of(model_type):
    """The classes of configuration and model of a detector's type."""
    place, *names = _MODELS[model_type]
    module = importlib.import_module(place)
    return [getattr(module, name) for name in names]


def _load(detector, values, tensors):
    config_class, model_class = classes_of(detector.model_type)
    try:
        config = config_class(**values)
        tensors = {name: t for name, t in tensors.items() if not (is_counter(name) and ".backbone." in name)}
        if transformers.__version__ == "5.0.0":
            tensors = with_both_names(tensors, detector.model_type)
        with _quietly():
            model, info = model_class.from_pretrained(
                None, config=config, state_dict=tensors, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        reason = sentence(error)[:300]
        raise ConversionError(f"The tensors do not form a {detector.title} detector: {reason}") from error
    for each in sorted(info["mismatched_keys"]):
        if isinstance(each, str):  # 4.56
            each = each, tensors[each].shape, model.get_parameter(each).shape
        name, found, expected = each
        raise ConversionError(f"The tensor {name} has shape {list(found)}; this network needs {list(expected)}.")
    missing = sorted(name for name in info["missing_keys"] if not re.search(_COMPUTED_HERE, name))
    unexpected = sorted(info["unexpected_keys"])
    for what, names in (("lacks", missing), ("holds what the network does not have:", unexpected)):
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
