"""The way back for whole detectors: D-FINE, DEIM, RT-DETRv4 and DEIMv2."""

import json
import re
from pathlib import Path

import torch

from ..errors import ConversionError
from ..wording import sentence
from .anchors import anchors_of
from .architecture import name_variant
from .detectors import DETECTORS, TRAINING_ONLY, rename_detector_back
from .families import FROZEN_IN_DFINE
from .weight_file import read_weights


DETECTOR_LAYOUTS = ("dfine", "deim", "rtdetrv4", "deimv2")
_LAYERS = re.compile(r"decoder\.decoder\.layers\.(\d+)\.cross_attn\.sampling_offsets\.weight")


def is_detector(folder):
    """Whether the folder's configuration says that it holds a whole detector."""
    try:
        return isinstance(_config(folder).get("backbone_config"), dict)
    except (OSError, ValueError, AttributeError):
        return False


def _config(folder):
    return json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))


def detector_tensors(folder, path, layout):
    """
    Args:
        folder (`str`): a detector's folder, converted or fine-tuned, saved by this package or by stock Transformers.
        path (`str`): its weights.
        layout (one of `DETECTOR_LAYOUTS`): the program to write for.

    Returns:
        `tuple[dict, dict, list[str]]`: the tensors under the program's names, with the constants and counters that
        its own file holds; the backbone's configuration; what the program has to be told.

    Raises:
        `ConversionError`: the program computes another network, or the folder cannot be read.
    """
    config, detector = _config(folder), DETECTORS[layout]
    if config.get("model_type") != detector.model_type:
        fits = [key for key in DETECTOR_LAYOUTS if DETECTORS[key].model_type == config.get("model_type")]
        what = f"pass --layout {' or '.join(fits)}" if fits else "there is no way back for it"
        raise ConversionError(
            f"{folder} holds a detector of the type {config.get('model_type')}, and {detector.title} computes "
            f"another network; {what}."
        )
    tensors, _ = read_weights(path)
    # Stock's files hold a detector's heads once, under the name inside the decoder or without it.
    tensors = {
        re.sub(r"^(class|bbox)_embed\.", r"model.decoder.\1_embed.", name): each for name, each in tensors.items()
    }
    renamed = rename_detector_back(tensors, detector)
    layers = 1 + max(int(match[1]) for match in map(_LAYERS.fullmatch, renamed) if match)
    for head, is_shared in (("bbox", "share_bbox_head"), ("score", "share_score_head")):
        if config.get(is_shared):
            renamed.update(_repeated(renamed, f"decoder.dec_{head}_head.", layers))
    size = _image_size(folder)
    renamed.update(_constants(config, renamed, layers, size))
    frozen = layout == "dfine" and name_variant(config["backbone_config"]) in FROZEN_IN_DFINE
    renamed.update(_counters(renamed, without="backbone." if frozen else None))
    notes = [
        f"{detector.title} needs a configuration of the same sizes: num_classes {len(config['id2label'])}, "
        f"num_queries {config['num_queries']}, eval_spatial_size {size}"
    ]
    if layout == "rtdetrv4":
        notes.append(f"{TRAINING_ONLY}*, which RT-DETRv4 uses in training only, is not in the folder")
    return renamed, config["backbone_config"], notes


def _repeated(tensors, prefix, layers):
    """A shared head under the name of every layer."""
    first = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}0.")}
    return {
        name.replace(f"{prefix}0.", f"{prefix}{layer}.", 1): tensor
        for layer in range(1, layers)
        for name, tensor in first.items()
    }


def _image_size(folder):
    try:
        size = json.loads((Path(folder) / "preprocessor_config.json").read_text(encoding="utf-8"))["size"]
        return [int(size["height"]), int(size["width"])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConversionError(
            f"{folder} does not say the image size of its anchors: {sentence(error)[:200]}"
        ) from error


def _constants(config, tensors, layers, size):
    """What the program computes when it is built, and keeps in its files."""
    anchors, valid = anchors_of(size, config["feat_strides"])
    points = config["decoder_n_points"]
    points = points if isinstance(points, list) else [points] * len(config["feat_strides"])
    scale = torch.tensor([1 / count for count in points for _ in range(count)], dtype=torch.float32)
    constants = {"decoder.anchors": anchors, "decoder.valid_mask": valid}
    for name in ("up", "reg_scale"):
        value = float(tensors[f"decoder.{name}"])
        value = torch.tensor([int(value) if value == int(value) else value])  # as its configuration writes it
        constants.update({f"decoder.{name}": value, f"decoder.decoder.{name}": value})
    for layer in range(layers):
        constants[f"decoder.decoder.layers.{layer}.cross_attn.num_points_scale"] = scale
    return constants


def _counters(tensors, without):
    """Batch norm's counts of training steps, which PyTorch insists on though nothing uses them; 0 again."""
    return {
        name.replace(".running_var", ".num_batches_tracked"): torch.tensor(0)
        for name in tensors
        if name.endswith(".running_var") and not (without and name.startswith(without))
    }
