"""What SOURCE means: a file, a folder, an inference model, a published name; what it says beside its tensors."""

import dataclasses
import difflib
import json
import os
from pathlib import Path
from typing import Any, Optional

from ..errors import ConversionError
from ..hub.published import ASSETS, PUBLISHED, Published, find_published, published_name
from ..model.remote_code import NETWORK_TYPES
from . import ml_decoder
from .keras_preset import BACKBONE_WEIGHTS, HEAD_WEIGHTS, KerasPreset, is_preset, read_preset
from .network import scales_to_one
from .paddle_inference import PARAMETERS, InferenceFiles, find_inference_files, is_archive, unpack
from .timm_folder import TimmModel, read_timm_config


_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclasses.dataclass
class Source:
    """A weight file and what is known about it."""

    path: str
    name: Optional[str] = None  # in the table of published checkpoints
    row: Optional[Published] = None
    declared: dict[str, tuple[Any, str]] = dataclasses.field(default_factory=dict)  # by files beside the weights
    timm: Optional[TimmModel] = None  # what a timm folder builds
    keras: Optional[KerasPreset] = None  # what a preset of KerasHub builds
    inference: Optional[InferenceFiles] = None  # of an inference model
    unsupported: Optional[str] = None  # why its preprocessing is none that a conversion writes, in a sentence

    @property
    def address(self):
        return self.row.url if self.row is not None and self.row.url else Path(self.path).name


def find_source(source):
    """
    Args:
        source (`str`): a file, a folder that holds `model.safetensors`, `pytorch_model.bin`, a preset of KerasHub or
            an inference model of Paddle, or a published name, which is downloaded unless it is there already.

    Returns:
        [`Source`]

    Raises:
        `ConversionError`: there is no such file, or it cannot be fetched.
    """
    if os.path.isfile(source):
        return _inference_model(source) or _file_of_preset(Path(source)) or Source(source, *find_published(source))
    if os.path.isdir(source):
        return _inference_model(source) or _folder(Path(source))
    if os.path.exists(source):
        raise ConversionError(f"{source} is neither a file nor a folder.")
    name = published_name(source)
    if name is None:
        similar = difflib.get_close_matches(source, PUBLISHED)
        meant = f"; is one of these meant: {', '.join(similar)}?" if similar else "."
        raise ConversionError(
            f"There is no file {source}, and no checkpoint is published under this name (`hgnetv2-hf list` has "
            f"all){meant}"
        )
    row = PUBLISHED[name]
    if row.page is not None:
        raise ConversionError(
            f"{name} has no address that a program could rely on: get {row.file_name} from {row.page} and pass the "
            "file."
        )
    if row.url is None:
        return Source(str(ASSETS / row.file_name), name, row)
    from ..hub.download import fetch

    return Source(fetch(row), name, row)


def _inference_model(source):
    """An archive stands for itself; a folder or a program for the parameters, whose name says nothing."""
    files = unpack(source) if is_archive(source) else find_inference_files(source)
    if files is None:
        return None
    names = (*_WEIGHT_FILES, BACKBONE_WEIGHTS)
    if os.path.isdir(source) and (others := [name for name in names if os.path.isfile(f"{source}/{name}")]):
        raise ConversionError(
            f"{source} holds {others[0]} beside {files.parameters.name}; name the file of the two that is meant."
        )
    return Source(source if files.folder else str(files.parameters), inference=files)


def _file_of_preset(path):
    """A weight file of KerasHub stands for the preset around it."""
    if path.name not in (BACKBONE_WEIGHTS, HEAD_WEIGHTS) or not is_preset(_read_json(path.with_name("config.json"))):
        return None
    return _preset(path.parent)


def _preset(folder):
    declared, preset = read_preset(folder, _read_json)
    if not (folder / BACKBONE_WEIGHTS).is_file():
        raise ConversionError(f"{folder} is a preset of KerasHub without {BACKBONE_WEIGHTS}.")
    return Source(str(folder / BACKBONE_WEIGHTS), declared=declared, keras=preset)


def _folder(folder):
    config = _read_json(folder / "config.json")
    if is_preset(config):
        return _preset(folder)
    weights = next((folder / name for name in _WEIGHT_FILES if (folder / name).is_file()), None)
    if weights is None:
        raise ConversionError(
            f"{folder} is a folder without weights (no {', '.join(_WEIGHT_FILES)} or {PARAMETERS} with its program)."
        )
    if "model_type" in config:
        processor = _read_json(folder / "preprocessor_config.json")
        declared = _declared_by_transformers(folder, config, processor)
        return Source(str(weights), declared=declared, unsupported=_unsupported(folder, processor))
    declared, model = read_timm_config(config)
    return Source(str(weights), declared=declared, timm=model)


def _read_json(path):
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConversionError(f"{path} is not readable JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} does not hold a JSON object.")
    return content


def _unsupported(folder, processor):
    """Images are resized, cropped to a square from their short side on or not at all, and normalised from 0…1."""
    size, crop = processor.get("size"), processor.get("crop_size")
    crops = _crops(processor)
    reason = next((f"{name} is false" for name in _STEPS if processor.get(name) is False), None)
    factor = processor.get("rescale_factor", 1 / 255)
    if not isinstance(factor, (int, float)) or not scales_to_one(factor):
        reason = f"rescale_factor is {factor!r:.40}"
    elif processor and not isinstance(size, dict):
        reason = f"size is {size!r:.40}"
    elif processor and crops != ("shortest_edge" in size):
        reason = "a short side and a crop, or one size without a crop, are what a conversion knows"
    elif crops and isinstance(crop, dict) and crop.get("height") != crop.get("width"):
        reason = "the crop is no square"
    if reason is None:
        return None
    return f"{folder}/preprocessor_config.json prepares images in a way that is lost here: {reason}; change it."


def _crops(processor):
    """Processors that never crop, as those of vision transformers, do not say so."""
    crops = processor.get("do_center_crop")
    return crops if crops is not None else "shortest_edge" in (processor.get("size") or ())


_STEPS = ("do_resize", "do_rescale", "do_normalize")


def _declared_by_transformers(folder, config, processor):
    """What no tensor shows and the folder's own configuration says, saved by this package or by stock Transformers."""
    is_detector = isinstance(config.get("backbone_config"), dict)
    config = config["backbone_config"] if is_detector else config
    if config.get("model_type") not in NETWORK_TYPES:
        return {}
    if config["model_type"] == "hgnet_v2" and config.get("hidden_act", "relu") != "relu":
        raise ConversionError(
            f"{folder} was saved by stock Transformers with hidden_act {config['hidden_act']!r}, which reaches the "
            "stem only there; no configuration of this package computes that."
        )
    fields = ("hidden_act", "dropout_prob", "head_pooling", "id2label", *ml_decoder.ASSUMED_FIELDS)
    if config["model_type"] == "pp_hgnet":
        fields += ("batch_norm_eps",)
    else:
        fields += ("stem_strides", "stage_downsample_strides", "pool_padding")
    declared = {field: config[field] for field in fields if field in config}
    if config["model_type"] == "hgnet_v2":
        declared["pool_padding"] = "zero"
    if "id2label" in declared:
        try:
            declared["id2label"] = {int(index): str(label) for index, label in declared["id2label"].items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise ConversionError(f"{folder}/config.json holds an id2label that is not a table of labels.") from error
    for field, key, side in (("resize_short", "size", "shortest_edge"), ("crop_size", "crop_size", "height")):
        if isinstance(processor.get(key), dict) and isinstance(processor[key].get(side), int):
            declared[field] = processor[key][side]
    size = processor.get("size")
    if not (is_detector or _crops(processor)) and isinstance(size, dict) and {"height", "width"} <= set(size):
        declared.pop("crop_size", None)
        declared["image_size"] = [size["height"], size["width"]]
    for field in ("image_mean", "image_std", "resample"):
        if processor.get(field) is not None:
            declared[field] = processor[field]
    return {field: (value, "the folder's own configuration") for field, value in declared.items()}
