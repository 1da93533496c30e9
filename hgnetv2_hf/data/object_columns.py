"""Data sets of Hugging Face's ``datasets`` library with objects in them: a column `objects` with boxes and classes."""

from array import array

import numpy as np

from ..errors import DataError
from .annotated import Annotations, Found, SizedColumn, check_class_names, shortened
from .datasets_library import load, only_column
from .splits import VALIDATION_NAMES


# What the fields of an object are called; the first that is there counts.
_FIELDS = {
    "box": ("bbox", "bboxes", "boxes", "box"),
    "label": ("category", "categories", "label", "labels", "category_id", "class"),
    "area": ("area", "areas"),
    "crowd": ("iscrowd", "is_crowd"),
}


def find_object_columns(folder):
    """The files in a folder, or in one inside, that are the library's, or describe images to it."""
    names = ("dataset_dict.json", "state.json", "metadata.jsonl", "metadata.csv", "metadata.parquet")
    patterns = [*names, "*.parquet", "*.arrow"]
    return sorted(path for pattern in patterns for place in ("", "*/") for path in folder.glob(place + pattern))


def read_object_columns(source, image_column=None, objects_column=None, config_name=None, box_format=None):
    """
    Args:
        source (`str`): a name on the Hub, or a folder: of Parquet files, of images with `metadata.jsonl`, or written
            by `save_to_disk`.
        image_column (`str`, *optional*): by default the only one of images, else `image`.
        objects_column (`str`, *optional*): by default `objects`.
        config_name (`str`, *optional*): of the data set.
        box_format (`"xywh"` or `"xyxy"`, *optional*): in pixels; by default "xywh", as the library's documentation has
            them.

    Returns:
        [`Found`]. Columns `width` and `height` count as declared sizes, `image_id` as COCO's ids.

    Raises:
        `DataError`: the library is missing, or it has no such data set, split or column.
    """
    loaded = load(source, config_name)
    import datasets

    if "train" not in loaded:
        raise DataError(f"{source} has no split named train; it has {', '.join(loaded)}.")
    features = loaded["train"].features
    image_column = image_column or only_column(features, datasets.Image, "image")
    objects_column = objects_column or "objects"
    for column, option in ((image_column, "image_column"), (objects_column, "objects_column")):
        if column not in features:
            raise DataError(f"{source} has no column {column}; it has {', '.join(features)} (option {option}).")
    if not isinstance(features[image_column], datasets.Image):
        raise DataError(f"The column {image_column} of {source} holds no images.")
    held_out = next((name for name in VALIDATION_NAMES if name in loaded), None)
    parts = {name: loaded[name] for name in ("train", held_out) if name}
    fields = _fields(features[objects_column], objects_column, source)
    values = {name: _values(part, objects_column, fields, source) for name, part in parts.items()}
    class_names = getattr(_field_feature(features[objects_column], fields["label"]), "names", None)
    if class_names is None:
        seen = {label for each in values.values() for label in each["label"] if _is_label(label)}
        known = sorted(seen, key=lambda label: (isinstance(label, str), label))
        class_names = [str(label) for label in known]
    else:
        known = range(len(class_names))
    if not class_names:
        raise DataError(f"{source} has no object in its column {objects_column}.")
    check_class_names(class_names, source)
    label_of = {label: index for index, label in enumerate(known)}
    read = {
        name: _part(part.cast_column(image_column, datasets.Image(decode=False)), image_column, values[name], label_of,
                    box_format or "xywh")
        for name, part in parts.items()
    }  # fmt: skip
    understood = [
        f"format: datasets: {source}, column {objects_column} with {', '.join(fields.values())}; boxes as "
        f"{'left, top, width, height' if (box_format or 'xywh') == 'xywh' else 'left, top, right, bottom'}"
    ]
    unused = [name for name in loaded if name not in parts]
    if unused:
        understood.append(f"not used: {', '.join(unused)}")
    return Found(
        read["train"], read.get(held_out), class_names, f"the split {held_out}" if held_out else "", understood
    )


def _fields(feature, column, source):
    """Which of an object's fields is which."""
    names = _struct(feature)
    if names is None:
        raise DataError(f"The column {column} of {source} holds no objects with boxes and classes.")
    fields = {}
    for meaning, candidates in _FIELDS.items():
        found = [name for name in candidates if name in names]
        if not found and meaning in ("box", "label"):
            raise DataError(
                f"The objects of {source} have no {candidates[0]}; they have {', '.join(names)} (expected bbox and "
                "category)."
            )
        fields |= {meaning: found[0]} if found else {}
    return fields


def _struct(feature):
    """The fields of an object, whether the library stores a list of objects or lists of fields."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    if isinstance(feature, list) and len(feature) == 1:  # before `datasets` 4
        feature = feature[0]
    return feature if isinstance(feature, dict) else None


def _field_feature(feature, name):
    feature = _struct(feature)[name]
    while hasattr(feature, "feature"):
        feature = feature.feature
    return feature


def _values(dataset, column, fields, source):
    """Meaning -> a value per object, and the image that each object is in."""
    values = {meaning: [] for meaning in fields} | {"image": [], "place": []}
    for index, row in enumerate(dataset.select_columns([column])):
        objects = row[column]
        if isinstance(objects, list):  # of objects, and not lists of fields
            lists = {meaning: [(each or {}).get(name) for each in objects] for meaning, name in fields.items()}
        else:
            lists = {meaning: (objects or {}).get(name) or [] for meaning, name in fields.items()}
        count = len(lists["box"])
        lists = {meaning: each or [None] * count for meaning, each in lists.items()}
        if any(len(each) != count for each in lists.values()):
            raise DataError(f"Row {index} of {source} has lists of different lengths in its column {column}.")
        for meaning, each in lists.items():
            values[meaning] += each
        values["image"] += [index] * count
        values["place"] += range(count)
    return values


def _is_label(value):
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _part(dataset, image_column, values, label_of, box_format):
    images = SizedColumn(dataset, image_column, _sizes(dataset))
    rows, boxes, areas, left_out = [], array("d"), array("d"), []
    for row, (box, label) in enumerate(zip(values["box"], values["label"])):
        try:
            numbers, index = array("d", box), label_of[label]
            if len(numbers) != 4:
                raise ValueError
            area = values["area"][row] if "area" in values else None
            areas.append(float("nan") if area is None else area)
        except (KeyError, TypeError, ValueError, OverflowError):
            what = f"{shortened(box)} of class {shortened(label)}"
            left_out.append(
                f"image {values['image'][row]}, object {values['place'][row]}: no box with a class, {what}"
            )
            continue
        boxes.extend(numbers)
        is_crowd = bool(values["crowd"][row]) if "crowd" in values else False
        rows.append((values["image"][row], index, values["place"][row], is_crowd))
    table = np.array(rows, dtype="int64").reshape(-1, 4)
    boxes = np.array(boxes, dtype="float64").reshape(-1, 4)
    if box_format == "xywh":
        boxes[:, 2:] += boxes[:, :2]
    return Annotations(
        images, table[:, 0], boxes, table[:, 1], table[:, 3].astype(bool), np.array(areas, dtype="float64"),
        table[:, 2], "object", ids=_ids(dataset), left_out=left_out, spelling=box_format,
    )  # fmt: skip


def _sizes(dataset):
    """Columns `width` and `height` where there are both, else zeros."""
    sizes = np.zeros((len(dataset), 2), dtype="int64")
    if {"width", "height"} <= set(dataset.column_names):
        for column, name in enumerate(("width", "height")):
            values = list(dataset[name])
            if all(isinstance(value, int) and 0 < value < 2**31 for value in values):
                sizes[:, column] = values
    return sizes


def _ids(dataset):
    if "image_id" not in dataset.column_names:
        return None
    ids = list(dataset["image_id"])
    return ids if all(type(each) is int for each in ids) and len(set(ids)) == len(ids) else None
