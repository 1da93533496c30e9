"""A preset folder of KerasHub: what its configurations declare, read as plain data, and the way back.

Nothing in them is built: names of classes are compared, numbers are taken.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple, Optional

from ..errors import ConversionError
from ..model.image_processing_hgnetv2 import IMAGENET_MEAN, IMAGENET_STD
from .keras_weights import write_keras_weights
from .layouts import LAYOUTS, is_head, rename_back
from .network import LARGEST_SIDE


BACKBONE_WEIGHTS, HEAD_WEIGHTS = "model.weights.h5", "task.weights.h5"
_BACKBONE, _CLASSIFIER = "keras_hub>HGNetV2Backbone", "keras_hub>HGNetV2ImageClassifier"
_REASON = "{} of KerasHub"
_FILTERS = {"nearest": 0, "lanczos3": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers
# Columns of `stackwise_stage_filters`, then the lists beside it.
_COLUMNS = (
    "stage_in_channels",
    "stage_mid_channels",
    "stage_out_channels",
    "stage_num_blocks",
    "stage_numb_of_layers",
    "stage_kernel_size",
)
_LISTS = {"stage_downsample": "apply_downsample", "stage_light_block": "use_lightweight_conv_block"}


class KerasPreset(NamedTuple):
    """What the folder's models are built with."""

    backbone: dict[str, Any]
    classifier: Optional[dict[str, Any]]
    head_weights: Optional[str]  # a file of its own


def is_preset(config):
    """Whether the content of a ``config.json`` is that of this network in KerasHub."""
    return config.get("registered_name") == _BACKBONE


def read_preset(folder, read_json):
    """
    Args:
        folder (`Path`): a folder that KerasHub's `save_to_preset` wrote.
        read_json: gives the content of a JSON file, empty where there is none.

    Returns:
        `tuple[dict, KerasPreset]`: field to value and reason, of what no tensor shows; and the preset.

    Raises:
        `ConversionError`: it holds what KerasHub does not write, or asks for something that is unsupported.
    """
    names = ("config.json", "task.json", "image_converter.json", "preprocessor.json")
    config, task, converter, preprocessor = (read_json(folder / name) for name in names)
    if task and task.get("registered_name") != _CLASSIFIER:
        raise ConversionError(
            f"{folder / 'task.json'} builds {str(task.get('registered_name'))[:80]}; expected {_CLASSIFIER}. "
            "Without task.json and task.weights.h5, the folder converts as a backbone."
        )
    try:
        backbone = config["config"]
        _check_copies(folder, config, task, converter, preprocessor)
        classifier = task["config"] if task else None
        declared = {"hidden_act": (backbone["hidden_act"], _REASON.format("config.json"))}
        if classifier is not None:
            declared.update(_declared_head(classifier))
        if converter:
            declared.update(_preprocessing(folder, converter["config"]))
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ConversionError(f"{folder} holds something that KerasHub does not write: {error!r:.150}.") from error
    if classifier is not None and not (folder / HEAD_WEIGHTS).is_file():
        raise ConversionError(
            f"{folder / 'task.json'} builds a classifier, whose weights ({HEAD_WEIGHTS}) are not there; without "
            "task.json, the folder converts as a backbone."
        )
    if backbone["hidden_act"] != "relu":
        raise ConversionError(
            f"{folder}/config.json says hidden_act {str(backbone['hidden_act'])[:40]!r}, which reaches the stem only "
            "in KerasHub; no configuration of this package computes that."
        )
    head = folder / HEAD_WEIGHTS
    return declared, KerasPreset(backbone, classifier, str(head) if head.is_file() else None)


def _check_copies(folder, config, task, converter, preprocessor):
    """KerasHub writes backbone and image converter into several files, and loads them from one or the other."""
    nested = task.get("config") or {}
    copies = (
        ("config.json", config, "task.json", nested.get("backbone")),
        (_CONVERTER, converter, "task.json", _converter_in(nested.get("preprocessor"))),
        (_CONVERTER, converter, "preprocessor.json", _converter_in(preprocessor)),
    )
    for name, content, other, copy in copies:
        one, two = ((each or {}).get("config") or {} for each in (content, copy))
        for field in one.keys() & two.keys() - _OF_NO_EFFECT:
            if one[field] != two[field]:
                values = f"{str(one[field])[:80]} in {name} and {str(two[field])[:80]} in {other}"
                raise ConversionError(f"{folder} says {field[:40]} {values}; correct the one that is wrong.")


_CONVERTER = "image_converter.json"
_OF_NO_EFFECT = {"name", "trainable", "dtype", "out_features"}


def _converter_in(preprocessor):
    return ((preprocessor or {}).get("config") or {}).get("image_converter")


def _declared_head(classifier):
    if classifier["activation"] not in (None, "linear"):
        raise ConversionError(
            f"task.json says activation {str(classifier['activation'])[:40]!r} behind the classifier; logits are "
            "computed here: save it in KerasHub with activation=None."
        )
    reason = _REASON.format("task.json")
    return {"dropout_prob": (classifier["dropout"], reason), "head_pooling": (classifier["pooling"], reason)}


def _preprocessing(folder, converter):
    """What KerasHub's image converter does, in the terms of this package's image processor."""
    reason = _REASON.format("image_converter.json")
    declared = {}
    scale, offset = (_per_channel(converter[name], default) for name, default in (("scale", 1.0), ("offset", 0.0)))
    std = [1 / (255 * value) for value in scale]
    shared = max(len(scale), len(offset))
    std, offset = (values * (shared // len(values)) for values in (std, offset))
    declared["image_std"] = std
    declared["image_mean"] = [-value * deviation for value, deviation in zip(offset, std)]
    if converter["image_size"] is None:
        return {field: (value, reason) for field, value in declared.items()}
    height, width = converter["image_size"]
    if type(height) is not int or type(width) is not int:
        raise TypeError("an image_size that is no number of pixels")
    if not 0 < min(height, width) <= max(height, width) <= LARGEST_SIDE:
        raise ValueError(f"an image_size of {height:.3g}×{width:.3g}")
    if converter["pad_to_aspect_ratio"] or (converter["crop_to_aspect_ratio"] and height != width):
        raise ConversionError(
            f"{folder}/image_converter.json pads images, or crops them to {height}×{width}; only squares, and sizes "
            "without a crop, are supported."
        )
    if converter["interpolation"] not in _FILTERS:
        raise ConversionError(
            f"{folder}/image_converter.json says interpolation {str(converter['interpolation'])[:40]!r}; expected "
            f"{', '.join(_FILTERS)}."
        )
    if converter["crop_to_aspect_ratio"]:
        declared.update(resize_short=height, crop_size=height)
    else:
        declared["image_size"] = [height, width]
    antialias = "" if converter["antialias"] else ", where it samples without antialiasing and Pillow with it"
    return {
        **{field: (value, reason) for field, value in declared.items()},
        "resample": (_FILTERS[converter["interpolation"]], reason + antialias),
    }


def _per_channel(value, default):
    values = default if value is None else value
    return [float(each) for each in values] if isinstance(values, list) else [float(values)]


def check_preset(preset, fields):
    """
    Args:
        preset ([`KerasPreset`]): the folder's.
        fields (`dict`): what the tensors show (see `architecture.py`).

    Raises:
        `ConversionError`: the configuration builds another network than the tensors.
    """
    said, shown = {}, {}
    try:
        config = preset.backbone
        columns = list(zip(*config["stackwise_stage_filters"]))
        said.update({field: list(columns[index]) for index, field in enumerate(_COLUMNS)})
        said.update({field: [bool(each) for each in config[name]] for field, name in _LISTS.items()})
        said["stem_channels"] = list(config["stem_channels"][1:])
        said["num_channels"] = config["image_shape"][-1]
        said["use_learnable_affine_block"] = config["use_learnable_affine_block"]
        shown = {field: fields[field] for field in said}
        shown["stem_channels"] = fields["stem_channels"][1:]
        if preset.classifier is not None and "num_labels" in fields:
            expand = preset.classifier["head_filters"]
            said.update(num_classes=preset.classifier["num_classes"], head_filters=expand)
            shown.update(num_classes=fields["num_labels"], head_filters=fields.get("class_expand"))
    except (KeyError, IndexError, TypeError) as error:
        raise ConversionError(f"The preset holds something that KerasHub does not write: {error!r}.") from error
    for name, value in said.items():
        if value != shown[name]:
            raise ConversionError(
                f"The preset's configuration says {name} {str(value)[:80]}, and its tensors show {shown[name]}; "
                "correct the one that is wrong."
            )


def write_preset(model, folder, preprocessing=None):
    """
    Writes a preset that KerasHub's `from_preset` loads: of the backbone, and of the classifier where it is KerasHub's.

    Args:
        model (`PreTrainedModel`): the network, whose strides and activation are those of KerasHub.
        folder (`Path`): an empty folder.
        preprocessing (`dict`, *optional*): `image_size`, `crops`, `resample`, `image_mean` and `image_std` of a
            classifier.

    Returns:
        `int`: how many tensors were written.
    """
    tensors = rename_back(
        {name: tensor for name, tensor in model.state_dict().items() if has_keras_head(model) or not is_head(name)},
        LAYOUTS["keras"],
    )
    head = {name for name in tensors if name.startswith(_HEAD)}
    write_keras_weights({name: each for name, each in tensors.items() if name not in head}, folder / BACKBONE_WEIGHTS)
    backbone = _object("models", "HGNetV2Backbone", _backbone_config(model.config))
    parameters = sum(each.numel() for name, each in model.state_dict().items() if each.ndim and not is_head(name))
    contents = {
        "config.json": backbone,
        "metadata.json": {"parameter_count": parameters, "tasks": ["ImageClassifier"] if head else []},
    }
    if head:
        write_keras_weights({name: tensors[name] for name in head}, folder / HEAD_WEIGHTS)
        converter = _object("layers", "HGNetV2ImageConverter", _converter_config(preprocessing or {}))
        preprocessor = {"image_converter": converter, "config_file": "preprocessor.json"}
        preprocessor = _object("models", "HGNetV2ImageClassifierPreprocessor", preprocessor)
        task = {
            "backbone": backbone,
            "preprocessor": preprocessor,
            "num_classes": model.config.num_labels,
            "pooling": model.config.head_pooling,
            "activation": None,
            "dropout": model.config.dropout_prob,
            "head_filters": model.config.class_expand,
        }
        contents["image_converter.json"] = converter
        contents["preprocessor.json"] = preprocessor
        contents["task.json"] = _object("models", "HGNetV2ImageClassifier", task)
    for name, content in contents.items():
        (Path(folder) / name).write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
    return len(tensors)


_HEAD = ("layers/hg_net_v2_conv_layer/", "layers/dense/")


def has_keras_head(model):
    """Whether a model ends in KerasHub's head."""
    return hasattr(model, "fc") and hasattr(model.config, "head_pooling")


def _object(module, name, config):
    return {
        "module": f"keras_hub.{module}",
        "class_name": name,
        "config": config,
        "registered_name": f"keras_hub>{name}",
    }


def _backbone_config(config):
    return {
        "depths": list(config.stage_num_blocks),
        "embedding_size": config.stem_channels[-1],
        "hidden_sizes": list(config.stage_out_channels),
        "stem_channels": list(config.stem_channels),
        "hidden_act": "relu",
        "use_learnable_affine_block": config.use_learnable_affine_block,
        "stackwise_stage_filters": [list(row) for row in zip(*(getattr(config, field) for field in _COLUMNS))],
        **{name: list(getattr(config, field)) for field, name in _LISTS.items()},
        "image_shape": [None, None, config.num_channels],
        "data_format": "channels_last",
    }


def _converter_config(preprocessing):
    mean, std = (preprocessing.get(*pair) for pair in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD)))
    names = {number: name for name, number in _FILTERS.items()}
    if preprocessing.get("resample", 3) not in names:
        raise ConversionError(
            f"KerasHub has no filter like Pillow's number {preprocessing['resample']}; set resample in the folder's "
            f"preprocessor_config.json to one of {', '.join(map(str, names))}."
        )
    return {
        "image_size": preprocessing.get("image_size", [224, 224]),
        "scale": [1 / (255 * each) for each in std],
        "offset": [-each / deviation for each, deviation in zip(mean, std)],
        "interpolation": names[preprocessing.get("resample", 3)],
        "antialias": True,
        "crop_to_aspect_ratio": preprocessing.get("crops", True),
        "pad_to_aspect_ratio": False,
    }
