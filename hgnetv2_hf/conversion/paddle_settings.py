"""
`inference.yml`, which PaddleClas and PaddleX write beside an inference model: preprocessing and names of classes.

Sources: PaddleClas ``ppcls/utils/config.py`` (``dump_infer_config``) and ``deploy/python/preprocess.py``;
PaddleDetection ``ppdet/engine/export_utils.py`` (``infer_cfg.yml``) and ``deploy/python/preprocess.py``.
"""

from ..errors import ConversionError
from ..files.yaml_file import read_yaml
from .network import LARGEST_SIDE, scales_to_one


_LARGEST = 2**18  # bytes; a thousand classes take 40,000
_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # of PIL
_WITHOUT_EFFECT = ("ToCHWImage", "KeepKeys")


def read_settings(path, is_detector):
    """
    Args:
        path (`Path`): an `inference.yml`.
        is_detector (`bool`): whether the program beside it is a detector.

    Returns:
        `dict[str, tuple]`: field to value and reason: preprocessing and `id2label`, as far as the file has them; of a
        detector `image_size`, `resample` and `id2label`.

    Raises:
        `ConversionError`: it is unreadable, of the other kind, or prepares images in a way that is not computed here.
    """
    settings = read_yaml(path, _LARGEST, ConversionError)
    if settings.get("PreProcess" if is_detector else "Preprocess"):
        wrong, right = ("classifier", "detector") if is_detector else ("detector", "classifier")
        raise ConversionError(
            f"{path} prepares images for a {wrong}, and the program beside it is a {right}: take the wrong one away."
        )
    try:
        declared = {}
        for arguments in settings.get("Preprocess") or []:  # a detector's
            arguments = dict(arguments)
            name = arguments.pop("type")
            if name in _DETECTOR_STEPS:
                declared.update(_DETECTOR_STEPS[name](path, **arguments))
            elif name != "Permute":
                raise ConversionError(f"{path} prepares images with {name!r:.40}, which is not computed here.")
        labels = [settings.get("label_list")]
        for step in (settings.get("PreProcess") or {}).get("transform_ops") or []:
            ((name, arguments),) = step.items()
            if name == "CropImage" and "image_size" in declared:
                raise ConversionError(f"{path} crops what it has resized to one size, which is not computed here.")
            if name == "ResizeImage" and "crop_size" in declared:
                raise ConversionError(f"{path} crops images before it resizes them, which is not computed here.")
            if name in _STEPS:
                declared.update(_STEPS[name](path, **(arguments or {})))
            elif name not in _WITHOUT_EFFECT:
                raise ConversionError(f"{path} prepares images with {name!r:.40}, which is not computed here.")
        labels += [(arguments or {}).get("label_list") for arguments in (settings.get("PostProcess") or {}).values()]
        labels = [each for each in labels if each]
        if labels:
            declared["id2label"] = _labels(path, labels)
    except (AttributeError, TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise ConversionError(f"{path} holds something that Paddle does not write: {error!r:.150}.") from error
    return {
        field: value if isinstance(value, tuple) else (value, f"read from {path.name}")
        for field, value in declared.items()
    }


def _labels(path, lists):
    """The names, which are read as YAML reads them: `yes` is no text there."""
    names = lists[0]
    if not isinstance(names, list) or not all(type(name) in (str, int, float) for name in names):
        raise ConversionError(f"{path} holds a label_list that is no list of names.")
    if any(other != names for other in lists[1:]):
        raise ConversionError(f"{path} holds two lists of names that differ.")
    return {index: str(name) for index, name in enumerate(names)}


def _pixels(value):
    """Whole numbers of pixels, of one side or several."""
    sides = value if isinstance(value, list) else [value]
    if not 0 < len(sides) <= 3 or not all(type(side) in (int, float) and side == int(side) for side in sides):
        raise ValueError("a size that is not one")
    sides = [int(side) for side in sides]
    if not 0 < min(sides) <= max(sides) <= LARGEST_SIDE:
        raise ValueError("a size that no image has")
    return sides


def _decode(path, to_rgb=True, **_):
    if to_rgb is False:
        raise ConversionError(f"{path} hands images over as BGR; the networks here take RGB.")
    return {}


def _resize(path, resize_short=None, size=None, interpolation=None, backend="cv2", **_):
    if resize_short:  # counts more than a size, in Paddle, too
        (short,) = _pixels(resize_short)
        declared = {"resize_short": short}
    else:
        width, height = (_pixels(size) * 2)[:2]
        declared = {"image_size": [height, width]}
    name = (interpolation or "bilinear").lower()
    if name not in _FILTERS:
        raise ConversionError(f"{path} resizes images with the filter {name!r:.40}, which is not computed here.")
    filter_ = _FILTERS[name]
    if backend.lower() != "pil":
        reason = f"read from {path.name}, whose program resizes with OpenCV's filter of that name, not PIL's"
        return {**declared, "resample": (filter_, reason)}
    return {**declared, "resample": filter_}


def _crop(path, size, **_):
    sides = set(_pixels(size))
    if len(sides) != 1:
        raise ConversionError(f"{path} crops images to {'×'.join(map(str, size))}; only square crops are supported.")
    return {"crop_size": sides.pop()}


def _normalize(path, scale=1 / 255, mean=None, std=None, order="", **_):
    if isinstance(scale, str):  # "1.0/255.0", which Paddle evaluates
        above, _, below = scale.partition("/")
        scale = float(above) / float(below or 1)
    if not scales_to_one(scale) or order not in ("", "chw", "hwc", None):
        raise ConversionError(f"{path} scales pixels by {scale!r:.40}; only 1/255 is computed here.")
    declared = {"image_mean": mean, "image_std": std}
    if not all(values is None or isinstance(values, list) for values in declared.values()):
        raise ValueError("a mean that is no list")
    return {field: [float(each) for each in values] for field, values in declared.items() if values is not None}


_STEPS = {"DecodeImage": _decode, "ResizeImage": _resize, "CropImage": _crop, "NormalizeImage": _normalize}


_OPENCV_FILTERS = {0: 0, 1: 2, 2: 3, 4: 1}  # nearest, bilinear, bicubic and Lanczos, by PIL's numbers


def _resize_to(path, target_size, keep_ratio=True, interp=1, **_):
    if keep_ratio:
        raise ConversionError(f"{path} keeps the ratio of an image's sides; RT-DETR's processor does not.")
    if interp not in _OPENCV_FILTERS:
        raise ConversionError(
            f"{path} resizes images with OpenCV's filter {interp!r:.40}, which is not computed here."
        )
    height, width = _pixels(target_size)
    reason = f"read from {path.name}, whose program resizes with OpenCV's filter of that name, not PIL's"
    return {"image_size": [height, width], "resample": (_OPENCV_FILTERS[interp], reason)}


def _leave_in_unit_range(path, mean=(0,), std=(1,), is_scale=True, norm_type="mean_std", **_):
    is_plain = norm_type == "none" or (set(map(float, mean)), set(map(float, std))) == ({0.0}, {1.0})
    if not (is_scale and is_plain):
        raise ConversionError(
            f"{path} normalises images with mean {mean!r:.60} and standard deviation {std!r:.60}; detectors here take "
            "values in 0…1."
        )
    return {}


_DETECTOR_STEPS = {"Resize": _resize_to, "NormalizeImage": _leave_in_unit_range}
