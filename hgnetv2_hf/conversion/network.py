"""Builds the network that the tensors show: its model type, configuration, weights and preprocessing."""

import importlib
from typing import NamedTuple

import torch

from ..errors import ConversionError
from ..model.image_processing_hgnetv2 import HGNetV2ImageProcessor
from ..model.remote_code import AUTO_MAPS
from ..model.variants import DOWNSAMPLE_STRIDE, STEM_STRIDES
from . import ml_decoder
from .architecture import is_pp_hgnet
from .layouts import is_counter
from .values import checked_weight, with_memory_of_their_own


_HEAD_FIELDS = ("num_labels", "use_last_conv", "class_expand", *ml_decoder.SHOWN_FIELDS)
_ASSUMED_HEAD_FIELDS = ("num_labels", "head_pooling", *ml_decoder.ASSUMED_FIELDS)
_ASSUMED_FIELDS = ("hidden_act", "stem_strides", "stage_downsample_strides")
_PP_HGNET_ASSUMED_FIELDS = ("hidden_act", "batch_norm_eps")
LARGEST_SIDE = 4096  # pixels, of the images that a file may ask for


class ModelType(NamedTuple):
    name: str  # "hgnet_v2", "pp_hgnet_v2", "pp_hgnet_v2_ml", "pp_hgnet" or "hgnet_v2_keras"
    reason: str


def choose_model_type(task, fields, assumed):
    """
    `hgnet_v2`, which stock Transformers opens, wherever stock computes what the checkpoint's own program does.

    Args:
        task (`str`): `"classification"` or `"backbone"`.
        fields (`dict`): what the tensors show (see `architecture.py`).
        assumed (`dict[str, tuple]`): field to value and reason.

    Returns:
        [`ModelType`]
    """
    if is_pp_hgnet(fields):
        return ModelType("pp_hgnet", "Transformers has no PP-HGNet")
    if task == "classification" and "decoder_queries" in fields:
        return ModelType("pp_hgnet_v2_ml", "stock has no ML-Decoder")
    if task == "classification" and fields.get("has_keras_head"):
        return ModelType("hgnet_v2_keras", "stock has no such head, with a convolution before the pooling")
    value = {field: pair[0] for field, pair in assumed.items()}
    reasons = []
    if fields["use_learnable_affine_block"] and value.get("pool_padding") == "same":
        reasons.append("with LAB, the padding of the stem's max-pool shows, and stock pads it with zeros")
    if task == "classification" and fields["use_last_conv"]:
        reasons.append("stock's head has no convolution before fc")
    if value["hidden_act"] != "relu":
        reasons.append(f"stock applies {value['hidden_act']} to the stem only")
    if not _has_default_strides(value):
        reasons.append("stock before Transformers 5.4 ignores strides")
    if reasons:
        return ModelType("pp_hgnet_v2", "; ".join(reasons))
    return ModelType("hgnet_v2", "stock Transformers computes the same")


def build_network(model_type, task, fields, assumed, tensors):
    """
    Args:
        model_type (`str`): `"hgnet_v2"`, `"pp_hgnet_v2"`, `"pp_hgnet_v2_ml"`, `"pp_hgnet"` or `"hgnet_v2_keras"`.
        task, fields, assumed: as in [`choose_model_type`].
        tensors (`dict[str, torch.Tensor]`): the weights under their names in Transformers.

    Returns:
        `PreTrainedModel`: in evaluation mode.

    Raises:
        `ConversionError`: the tensors do not form a network, or one of them does not fit into it.
    """
    kind = model_class(model_type, "AutoBackbone" if task == "backbone" else "AutoModelForImageClassification")
    try:
        config = kind.config_class(**_configuration(model_type, task, fields, assumed))
        if model_type != "pp_hgnet":
            config.set_compatibility_fields()
        with torch.device("meta"):
            model = kind(config).eval()
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ConversionError(f"The tensors do not form a network: {error}") from error
    return load_weights(model, tensors)


def model_class(model_type, auto_class):
    """The class of this package that an Auto class of Transformers (such as `"AutoBackbone"`) finds for a type."""
    module, name = AUTO_MAPS[model_type][auto_class].split(".")
    return getattr(importlib.import_module(f"..model.{module}", __package__), name)


def _configuration(model_type, task, fields, assumed):
    """The arguments of the configuration's class."""
    is_faithful = model_type != "hgnet_v2"
    arguments = {name: value for name, value in fields.items() if name not in (*_HEAD_FIELDS, "has_keras_head")}
    assumed_fields = _PP_HGNET_ASSUMED_FIELDS if model_type == "pp_hgnet" else _ASSUMED_FIELDS
    arguments.update({name: assumed[name][0] for name in assumed_fields})
    if model_type in ("pp_hgnet_v2", "hgnet_v2_keras"):
        arguments["pool_padding"] = assumed["pool_padding"][0] if "pool_padding" in assumed else "zero"
    if task == "backbone":
        return arguments
    head = _HEAD_FIELDS if is_faithful else ("num_labels",)
    arguments.update({name: fields[name] for name in head if name in fields})
    arguments.update({name: assumed[name][0] for name in _ASSUMED_HEAD_FIELDS if name in assumed})
    if fields["use_last_conv"]:
        arguments["dropout_prob"] = assumed["dropout_prob"][0]
    if "id2label" in assumed:
        id2label = assumed["id2label"][0]
        arguments.update(id2label=id2label, label2id={name: index for index, name in id2label.items()})
    return arguments


def _has_default_strides(value):
    """Whether the strides, which a file may declare as anything, are those of the published networks."""
    downsample = value["stage_downsample_strides"]
    return value["stem_strides"] == list(STEM_STRIDES) and (
        isinstance(downsample, list) and all(stride == DOWNSAMPLE_STRIDE for stride in downsample)
    )


def load_weights(model, tensors):
    """The model with its weights. Raises ``ConversionError`` for a tensor that is missing, unknown or does not fit."""
    expected = model.state_dict()
    counters = set(filter(is_counter, expected))
    missing = sorted(set(expected) - counters - set(tensors))
    unknown = sorted(set(tensors) - set(expected))
    if missing:
        raise ConversionError(f"The file lacks {some(missing)}.")
    if unknown:
        raise ConversionError(f"The file holds what this network does not have: {some(unknown)}.")
    state_dict = {}
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ConversionError(
                f"The tensor {name} has shape {list(tensor.shape)}; this network needs {list(expected[name].shape)}."
            )
        if name in counters:
            state_dict[name] = _counter(name, tensor)
            continue
        if not tensor.is_floating_point():
            raise ConversionError(
                f"The tensor {name} holds {tensor.dtype} values; weights are floating-point numbers."
            )
        state_dict[name] = checked_weight(name, tensor)
    for name in counters - set(tensors):
        state_dict[name] = torch.tensor(0)
    model.load_state_dict(with_memory_of_their_own(state_dict), assign=True)
    return model


def _counter(name, tensor):
    if tensor.dtype != torch.int64 or int(tensor) < 0:
        raise ConversionError(f"The tensor {name} is not a count.")
    return tensor.clone()


def some(names):
    """The first three of some names, and how many more there are."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


def scales_to_one(factor):
    """Whether 0…255 becomes 0…1, as in every preprocessing that is computed here."""
    return abs(factor * 255 - 1) <= 1e-6


def build_image_processor(assumed):
    """The preprocessing that was assumed. Raises ``ConversionError`` where it does not work."""
    values = {field: value for field, (value, _) in assumed.items()}
    if "image_size" in values:
        height, width = values["image_size"]
        size = crop_size = {"height": height, "width": width}
    else:
        size, crop_size = _short_side_and_crop(values["resize_short"], values["crop_size"])
    try:
        return HGNetV2ImageProcessor(
            size=size,
            crop_size=crop_size,
            do_center_crop="image_size" not in values,
            **{field: values[field] for field in ("resample", "image_mean", "image_std")},
        )
    except (ValueError, TypeError) as error:
        raise ConversionError(f"The preprocessing declared beside the weights does not work: {error}") from error


def _short_side_and_crop(short, crop):
    if crop > short:
        raise ConversionError(
            f"A crop of {crop} pixels does not fit into images whose short side is resized to {short}; pass "
            f"--resize-short (and --crop-size) with what the network was trained with."
        )
    return {"shortest_edge": short}, {"height": crop, "width": crop}
