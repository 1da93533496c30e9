"""A timm folder's ``config.json``: what it declares, and whether its model is the network that is computed here."""

import math
import re
from typing import Any, NamedTuple, Optional

from ..errors import ConversionError


class TimmModel(NamedTuple):
    """What ``timm.create_model`` gets for this folder."""

    architecture: Optional[str]
    arguments: dict[str, Any]


REASON = "config.json of timm"
# Arguments of timm's `HighPerfGpuNet` and what the tensors show for them; the head's do not matter to a backbone.
_SHOWN = {
    "in_chans": lambda fields: fields["num_channels"],
    "use_lab": lambda fields: fields.get("use_learnable_affine_block", False),
}
_SHOWN_IN_THE_HEAD = {
    "num_classes": lambda fields: fields.get("num_labels", 0),
    "head_hidden_size": lambda fields: fields.get("class_expand"),
}
_WITHOUT_EFFECT = ("drop_rate", "drop_path_rate", "pretrained")  # in evaluation
AVERAGE_POOLING = ("avg", "fast", "fastavg")


def read_timm_config(config):
    """
    Args:
        config (`dict`): the content of ``config.json``.

    Returns:
        `tuple[dict, TimmModel]`: field to value and reason for preprocessing and labels; and the model.

    Raises:
        `ConversionError`: it holds what timm does not write, or asks for preprocessing that is unsupported.
    """
    cfg = config.get("pretrained_cfg", config)
    try:
        declared = {**_preprocessing(cfg), **_labels(config, cfg)}
        model = TimmModel(config.get("architecture"), _arguments(config, cfg))
        if model.architecture is not None and not re.fullmatch(r"hgnet(v2)?_\w+", model.architecture):
            raise ConversionError(
                f"config.json names the architecture {model.architecture[:80]!r}; expected one of timm's hgnetv2 "
                "or hgnet models."
            )
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise ConversionError(f"config.json holds something that timm does not write: {error!r}.") from error
    return {field: (value, REASON) for field, value in declared.items()}, model


def check_timm_model(model, fields, task):
    """
    Args:
        model ([`TimmModel`]): the folder's.
        fields (`dict`): what the tensors show (see `architecture.py`).
        task (`str`): `"classification"` or `"backbone"`.

    Raises:
        `ConversionError`: an argument contradicts the tensors, or changes what this package does not compute.
    """
    for name, value in model.arguments.items():
        in_the_head = name in _SHOWN_IN_THE_HEAD or name == "global_pool"
        if name in _WITHOUT_EFFECT or (in_the_head and task == "backbone"):
            continue
        if name == "global_pool":
            if value not in AVERAGE_POOLING:
                raise ConversionError(
                    f"config.json says global_pool {value!r}; only average pooling is computed here, and --task "
                    "backbone converts the network before the pooling."
                )
        elif name in _SHOWN or name in _SHOWN_IN_THE_HEAD:
            shown = {**_SHOWN, **_SHOWN_IN_THE_HEAD}[name](fields)
            if value != shown:
                raise ConversionError(
                    f"config.json says {name} {value!r}, and the tensors show {shown!r}; correct the one that is "
                    "wrong."
                )
        else:
            raise ConversionError(
                f"config.json builds timm's model with {name}={value!r}; what that changes is not computed here."
            )


def _preprocessing(cfg):
    declared = {}
    if "input_size" in cfg:
        height, width = (int(side) for side in cfg["input_size"][-2:])
        if height != width:
            raise ConversionError(f"config.json asks for {height}×{width} pixels; only square crops are supported.")
        declared["crop_size"] = height
        declared["resize_short"] = math.floor(height / float(cfg.get("crop_pct") or 0.875))
    if cfg.get("crop_mode", "center") != "center":
        raise ConversionError(f"config.json asks for crop_mode {cfg['crop_mode']!r}; only the centre is supported.")
    for field, key in (("image_mean", "mean"), ("image_std", "std")):
        if key in cfg:
            declared[field] = [float(value) for value in cfg[key]]
    if "interpolation" in cfg:
        declared["resample"] = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}[cfg["interpolation"]]
    return declared


def _labels(config, cfg):
    names = cfg.get("label_names") or config.get("label_names")
    return {"id2label": {index: str(name) for index, name in enumerate(names)}} if names else {}


def _arguments(config, cfg):
    """The arguments as timm finds them: ``model_args`` before the values of the configuration around them."""
    arguments = {}
    if len(cfg.get("input_size", ())) == 3:
        arguments["in_chans"] = cfg["input_size"][0]
    for name in ("num_classes", "global_pool"):
        for place in (config, cfg):
            if place.get(name) is not None:
                arguments.setdefault(name, place[name])
    return {**arguments, **(config.get("model_args") or {})}
