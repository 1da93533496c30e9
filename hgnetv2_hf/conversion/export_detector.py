"""The way back for whole detectors: D-FINE, DEIM, RT-DETRv4 and DEIMv2.

What is written is read again as a file of the program would be: both configurations must agree in all that is
computed with.
"""

import json
import re
from pathlib import Path

import torch

from ..errors import ConversionError
from ..wording import sentence
from .anchors import anchors_of
from .architecture import name_variant
from .convert_detector import classes_of, read_detector
from .detectors import DETECTORS, TRAINING_ONLY, rename_detector_back
from .families import FROZEN_IN_DFINE
from .source import Source
from .weight_file import read_weights


DETECTOR_LAYOUTS = ("dfine", "deim", "rtdetrv4", "deimv2")
_LARGEST_SIDE = 8192  # pixels
# Fields of a configuration that the program computes with; widths show in the tensors.
_COMPUTED_WITH = """
    activation_function batch_norm_eps decoder_activation_function decoder_attention_heads decoder_layers
    decoder_method decoder_n_points decoder_offset_scale encode_proj_layers encoder_activation_function
    encoder_attention_heads encoder_block encoder_blocks encoder_layers encoder_type eval_idx feat_strides
    head_activation_function layer_norm_eps layer_scale learn_initial_query lqe_hidden_dim lqe_layers max_num_bins
    normalize_before num_feature_levels num_labels positional_encoding_temperature reg_scale share_bbox_head
    share_score_head top_prob_values up use_gateway
""".split()


def is_detector(folder):
    """Whether the folder's configuration says that it holds a whole detector."""
    return isinstance(_json(folder, "config.json").get("backbone_config"), dict)


def _json(folder, name):
    """The object in a JSON file of the folder, empty where there is none."""
    try:
        content = json.loads((Path(folder) / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def detector_tensors(folder, path, layout):
    """
    Args:
        folder (`str`): a detector's folder, converted or fine-tuned, saved by this package or by stock Transformers.
        path (`str`): its weights.
        layout (one of `DETECTOR_LAYOUTS`): the program to write for.

    Returns:
        `tuple[dict, PretrainedConfig, list[str]]`: the tensors under the program's names, with the constants and
        counters that its own file holds; the configuration; what the program has to be told.

    Raises:
        `ConversionError`: the program computes another network, or the folder cannot be read.
    """
    config, size = _configuration(folder, layout), _image_size(folder)
    tensors, _ = read_weights(path)
    # Stock's files hold a detector's heads once, under the name inside the decoder or without it.
    tensors = {
        re.sub(r"^(class|bbox)_embed\.", r"model.decoder.\1_embed.", name): each for name, each in tensors.items()
    }
    detector = DETECTORS[layout]
    renamed = rename_detector_back(tensors, detector)
    for head, is_shared in (("bbox", "share_bbox_head"), ("score", "share_score_head")):
        if getattr(config, is_shared, False):
            if any(name.startswith(f"decoder.dec_{head}_head.1.") for name in renamed):
                raise ConversionError(f"{folder} says `{is_shared}`, but holds a head per layer.")
            renamed.update(_repeated(renamed, f"decoder.dec_{head}_head.", config.decoder_layers))
    try:
        renamed.update(_constants(config, renamed, size))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ConversionError(f"{folder} holds no whole detector: {sentence(error)[:200]}") from error
    frozen = layout == "dfine" and name_variant(config.backbone_config.to_dict()) in FROZEN_IN_DFINE
    renamed.update(_counters(renamed, without="backbone." if frozen else None))
    _check_read_again(folder, config, renamed, layout)
    notes = [
        f"{detector.title} needs a configuration of the same sizes: num_classes {config.num_labels}, num_queries "
        f"{config.num_queries}, eval_spatial_size {size}"
    ]
    if layout == "rtdetrv4":
        notes.append(f"{TRAINING_ONLY}*, which RT-DETRv4 uses in training only, is not in the folder")
    return renamed, config, notes


def _configuration(folder, layout):
    """The folder's configuration, of the type that the program computes."""
    detector, model_type = DETECTORS[layout], _json(folder, "config.json").get("model_type")
    if model_type != detector.model_type:
        fits = [key for key in DETECTOR_LAYOUTS if DETECTORS[key].model_type == model_type]
        what = f"pass --layout {' or '.join(fits)}" if fits else "there is no way back for it"
        raise ConversionError(
            f"{folder} holds a detector of the type {model_type}, and {detector.title} computes another network; "
            f"{what}."
        )
    config_class, _ = classes_of(model_type)
    try:
        config = config_class.from_pretrained(folder)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConversionError(
            f"{folder}/config.json is no configuration of {detector.title}: {sentence(error)[:200]}"
        ) from error
    if getattr(config.backbone_config, "model_type", None) not in ("hgnet_v2", "pp_hgnet_v2"):
        raise ConversionError(f"{folder} has another backbone than HGNetV2.")
    return config


def _check_read_again(folder, config, tensors, layout):
    """Raises ``ConversionError`` unless the program's file is, for a conversion, what the folder says."""
    try:
        _, model, *_ = read_detector(
            Source(str(folder)), "deimv2" if layout == "deimv2" else "dfine", tensors, layout, config.num_queries
        )
    except ConversionError as error:
        raise ConversionError(f"{folder} cannot be written for {DETECTORS[layout].title}: {error}") from error
    ours, theirs = config.to_dict(), model.config.to_dict()
    for field in _COMPUTED_WITH:
        one, other = (_plain(each.get(field)) for each in (ours, theirs))
        if one != other:
            raise ConversionError(
                f"{folder} says `{field}` {one}, and {DETECTORS[layout].title} computes with {other}: it would be "
                "another network there."
            )


def _plain(value):
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _repeated(tensors, prefix, layers):
    """A shared head under the name of every layer."""
    first = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}0.")}
    return {
        name.replace(f"{prefix}0.", f"{prefix}{layer}.", 1): tensor
        for layer in range(1, layers)
        for name, tensor in first.items()
    }


def _image_size(folder):
    """Height and width, which the anchors are made for."""
    size = _json(folder, "preprocessor_config.json").get("size")
    sides = [size.get("height"), size.get("width")] if isinstance(size, dict) else [None, None]
    if not all(isinstance(side, int) and 0 < side <= _LARGEST_SIDE and side % 32 == 0 for side in sides):
        raise ConversionError(
            f"{folder}/preprocessor_config.json has the size {size}; the anchors in the file are of a height and a "
            f"width, multiples of 32 up to {_LARGEST_SIDE} pixels."
        )
    return sides


def _constants(config, tensors, size):
    """What the program computes when it is built, and keeps in its files."""
    anchors, valid = anchors_of(size, config.feat_strides)
    points = config.decoder_n_points
    points = points if isinstance(points, (list, tuple)) else [points] * config.num_feature_levels
    scale = torch.tensor([1 / count for count in points for _ in range(count)], dtype=torch.float32)
    constants = {"decoder.anchors": anchors, "decoder.valid_mask": valid}
    for name in ("up", "reg_scale"):
        value = float(tensors[f"decoder.{name}"])
        value = torch.tensor([int(value) if value == int(value) else value])  # as its configuration writes it
        constants.update({f"decoder.{name}": value, f"decoder.decoder.{name}": value})
    for layer in range(config.decoder_layers):
        constants[f"decoder.decoder.layers.{layer}.cross_attn.num_points_scale"] = scale
    return constants


def _counters(tensors, without):
    """Batch norm's counts of training steps, which PyTorch insists on though nothing uses them; 0 again."""
    return {
        name.replace(".running_var", ".num_batches_tracked"): torch.tensor(0)
        for name in tensors
        if name.endswith(".running_var") and not (without and name.startswith(without))
    }
