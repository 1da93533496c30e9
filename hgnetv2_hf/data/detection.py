"""One call for all data with objects in them: COCO, YOLO, Pascal VOC, and data sets of the ``datasets`` library."""

import os
from pathlib import Path

from ..errors import DataError
from ..wording import counted
from .annotated import as_split
from .coco import find_coco, read_coco
from .detection_checking import check_detection_data, check_objects, described, refuse_common_files
from .drawing import draw_contact_sheet, draw_objects
from .load import is_path
from .object_columns import find_object_columns, read_object_columns
from .objects import DetectionData, DetectionSplit, Objects, hold_out_images
from .voc import find_voc, read_voc
from .yolo import find_yolo, read_yolo


__all__ = [
    "FORMATS", "DetectionData", "DetectionSplit", "Objects", "check_detection_data", "draw_contact_sheet",
    "draw_objects", "load_detection_data",
]  # fmt: skip

_FINDERS = {
    "coco": lambda folder: [path for paths in find_coco(folder).values() for path in paths],
    "yolo": find_yolo,
    "voc": find_voc,
    "datasets": find_object_columns,
}
FORMATS = tuple(_FINDERS)
_SUFFIXES = {".json": "coco", ".yaml": "yolo", ".yml": "yolo"}
_SHOWN = 5  # of what was left out


def load_detection_data(
    source, validation_fraction=0.1, seed=0, data_format=None, config_name=None, image_column=None,
    objects_column=None, check=True, workers=None, show=None, box_format=None,
):  # fmt: skip
    """
    Args:
        source (`str`): a folder in COCO's, YOLO's or Pascal VOC's format, a COCO JSON file, a `data.yaml`, or the name
            or folder of a data set of the `datasets` library.
        validation_fraction (`float`, defaults to 0.1): of the images, held out where the data have no validation part;
            every class keeps a training image.
        seed (`int`): decides what is held out.
        data_format (`"coco"`, `"yolo"`, `"voc"` or `"datasets"`, *optional*): by default recognised.
        config_name, image_column, objects_column (`str`, *optional*): of a data set of the `datasets` library.
        check (`bool`, defaults to `True`): see [`check_detection_data`]. `False` opens no image of which the size is
            declared.
        workers (`int`, *optional*): threads that read images; by default one per core.
        show (callable, *optional*): receives how the data were read, and what was left out, a sentence at a time.
        box_format (`"xywh"` or `"xyxy"`, *optional*): how a COCO file or a column of `datasets` spells its boxes.

    Returns:
        [`DetectionData`]

    Raises:
        `DataError`: there are no such data, they can be read in two ways or contradict themselves, an image is in both
            parts, or no box is left to learn from.
    """
    source = str(source)
    if data_format not in (None, *FORMATS):
        raise DataError(f"There is no format {data_format}; expected one of {', '.join(FORMATS)}.")
    if box_format not in (None, "xywh", "xyxy"):
        raise DataError(f"There is no box_format {box_format}; expected xywh or xyxy.")
    data_format = data_format or _recognised(source)
    if box_format and data_format in ("yolo", "voc"):
        raise DataError(f"box_format is for COCO files and `datasets`; {source} is read as {data_format}.")
    if data_format == "datasets":
        found = read_object_columns(source, image_column, objects_column, config_name, box_format)
    else:
        path = _existing(source)
        found = read_coco(path, box_format) if data_format == "coco" else _READERS[data_format](path)
    data = _as_data(source, found, workers)
    if data.validation is None and validation_fraction:
        data = hold_out_images(data, validation_fraction, seed)
    refuse_common_files(data)
    check_objects(data)
    data = check_detection_data(data, workers) if check else described(data)
    if show is not None:
        _show(data, show)
    return data


_READERS = {"yolo": read_yolo, "voc": read_voc}


def _existing(source):
    path = Path(source)
    if not path.exists():
        raise DataError(f"There is no {source}; expected a folder or a file with annotations.")
    return path


def _recognised(source):
    """The only format that a source can be read in."""
    if not os.path.exists(source):
        if is_path(source) or source.lower().endswith(tuple(_SUFFIXES)):
            _existing(source)
        return "datasets"
    path = Path(source)
    if path.is_file():
        if path.suffix.lower() not in _SUFFIXES:
            raise DataError(f"{source} is no JSON file of COCO's and no data.yaml of YOLO's.")
        return _SUFFIXES[path.suffix.lower()]
    try:
        evidence = {name: files for name, find in _FINDERS.items() if (files := find(path))}
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror or error}.") from error
    if not evidence:
        raise DataError(
            f"{source} holds no annotations: no COCO JSON file, no data.yaml (YOLO), no XML files in Annotations or "
            "beside images (Pascal VOC), no Parquet files or metadata.jsonl (datasets)."
        )
    if len(evidence) > 1:
        readings = " and ".join(f"as {name} ({files[0]})" for name, files in evidence.items())
        raise DataError(f"{source} can be read {readings}: pass --format {' or --format '.join(evidence)}.")
    return next(iter(evidence))


def _as_data(source, found, workers):
    parts, skipped, understood = {}, [], list(found.understood)
    for name in ("train", "validation"):
        annotations = getattr(found, name)
        if annotations is None:
            parts[name] = None
            continue
        parts[name], left_out, changed = as_split(annotations, found.classes, source, workers)
        skipped += left_out
        title = "training" if name == "train" else name
        understood += [f"{title}: {line}" for line in changed]
    return DetectionData(
        source, parts["train"], parts["validation"], found.classes, found.held_out, skipped, understood,
        found.category_ids,
    )  # fmt: skip


def _show(data, show):
    for line in data.understood:
        show(line)
    if data.skipped:
        more = len(data.skipped) - _SHOWN
        first = "; ".join(data.skipped[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
        show(f"left out: {counted(len(data.skipped), 'image or box', 'images and boxes')}: {first}")
