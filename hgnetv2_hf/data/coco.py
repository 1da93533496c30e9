"""COCO's format: a JSON file per part, and the images beside it.

Read from: ``annotations/instances_train2017.json`` and ``…_val2017.json`` with image folders, Roboflow's
``train/_annotations.coco.json`` and ``valid/_annotations.coco.json``, ``train.json`` and ``val.json``, and single
files.
"""

import contextlib
import filecmp
import gc
import json
import os
import re
from array import array
from collections import Counter
from pathlib import PureWindowsPath
from typing import NamedTuple

import numpy as np

from ..errors import DataError
from ..wording import counted, sentence
from .annotated import MAX_NAME, Annotations, Found, SizedFiles, check_class_names, shortened
from .class_folders import TRAIN_NAMES
from .splits import VALIDATION_NAMES


ROBOFLOW = "_annotations.coco.json"
_PART_FILE = re.compile(rf"(?:instances_)?({'|'.join((*TRAIN_NAMES, *VALIDATION_NAMES))})(?:[-_]?\d+)?\.json", re.I)
_KEYS = re.compile(rb'"(images|annotations|categories|licenses|info)"\s*:')
_SNIFFED = 4096  # bytes
_SAMPLE = 20  # images whose files are looked for in each folder


class _Image(NamedTuple):
    id: object
    file_name: object
    width: object
    height: object


class _Annotation(NamedTuple):
    id: object
    image_id: object
    category_id: object
    bbox: object
    area: object
    iscrowd: object


def find_coco(folder):
    """
    Args:
        folder (`Path`): a folder.

    Returns:
        `dict[str, list[Path]]`: the files that look like COCO's, by the part that their names say, in lower case;
        those of no part under "".
    """
    places = [place for place in (folder, folder / "annotations") if place.is_dir()]
    files = sorted(path for place in places for path in place.glob("*.json") if not path.name.startswith("."))
    parts = {}
    for path in files:
        if (match := _PART_FILE.fullmatch(path.name)) and _looks_like_coco(path):
            parts.setdefault(match[1].lower(), []).append(path)
    for path in sorted(folder.glob(f"*/{ROBOFLOW}")):
        name = path.parent.name.lower()
        if name in (*TRAIN_NAMES, *VALIDATION_NAMES):
            parts.setdefault(name, []).append(path)
    if parts:
        return parts
    others = [path for path in files if _looks_like_coco(path)]
    return {"": others} if others else {}


def _looks_like_coco(path):
    try:
        with open(path, "rb") as file:
            start = file.read(_SNIFFED)
            file.seek(max(0, os.path.getsize(path) - _SNIFFED))
            return bool(_KEYS.search(start) or _KEYS.search(file.read()))
    except OSError:
        return False


@contextlib.contextmanager
def _without_garbage_collection():
    """Decorator: a file makes millions of objects, none in a circle; looking for circles takes half of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_without_garbage_collection()
def read_coco(source, box_format=None):
    """
    Args:
        source (`Path`): a folder, or a JSON file.
        box_format (`"xywh"` or `"xyxy"`, *optional*): how the file spells its boxes; by default as COCO's do, "xywh".

    Returns:
        [`Found`]: classes are the categories in the order of their ids.

    Raises:
        `DataError`: there is no such file, it is no JSON of this form, or it contradicts itself.
    """
    train_file, validation_file, unused = (source, None, []) if source.is_file() else _part_files(source)
    files = [file for file in (train_file, validation_file) if file is not None]
    contents = [_load(file) for file in files]
    categories = _categories(files, contents)
    used = Counter(
        row.category_id
        for content in contents
        for row in content["annotations"]
        if isinstance(row, _Annotation) and isinstance(row.category_id, (int, float))
    )
    categories, understood = _without_empty_namesakes(categories, used)
    check_class_names(list(categories.values()), str(files[0]))
    parts, folders = [], []
    for file in files:
        annotations, folder, lines = _part(file, contents.pop(0), list(categories), box_format or "xywh")
        parts.append(annotations)
        folders.append(folder)
        understood += lines
    reading = ", ".join(f"{file} with the images in {folder}" for file, folder in zip(files, folders))
    understood = [f"format: COCO: {reading}", *understood]
    if unused:
        understood.append(f"not used: {', '.join(map(str, unused))}")
    held_out = str(validation_file) if validation_file else ""
    validation = parts[1] if validation_file else None
    return Found(parts[0], validation, list(categories.values()), held_out, understood, list(categories))


def _part_files(folder):
    """The file to learn from, the one to validate with or ``None``, and those left unused."""
    parts = find_coco(folder)
    if not parts:
        raise DataError(
            f"{folder} holds no COCO file; expected annotations/instances_train….json, train/{ROBOFLOW}, train.json, "
            "or one other JSON file with images, annotations and categories."
        )
    for files in parts.values():
        if len(files) > 1:
            raise DataError(f"{files[0]} and {files[1]} mean the same part; keep one, or pass one of the files.")
    if "" in parts:
        return parts[""][0], None, []
    trains = [name for name in TRAIN_NAMES if name in parts]
    held_out = [name for name in VALIDATION_NAMES if name in parts]
    if not trains:
        raise DataError(f"{folder} holds {parts[held_out[0]][0]} but nothing to learn from; pass that file itself.")
    if len(trains) > 1:
        raise DataError(f"{parts[trains[0]][0]} and {parts[trains[1]][0]} mean the same part; keep one of them.")
    unused = [parts[name][0] for name in held_out[1:]]
    return parts[trains[0]][0], parts[held_out[0]][0] if held_out else None, unused


def _load(file):
    try:
        with open(file, encoding="utf-8-sig") as stream:
            content = json.load(stream, object_hook=_lean)
    except RecursionError as error:
        raise DataError(f"{file} nests deeper than any COCO file does.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as JSON: {sentence(error)[:200]}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} is no COCO file: it holds {shortened(content)}, expected an object.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise DataError(f"{file} is no COCO file: it has no list of {key}.")
    return content


def _lean(item):
    """An object of the JSON file without what no detector learns from, so that a file of masks fits into memory."""
    if "bbox" in item:
        return _Annotation(*map(item.get, _Annotation._fields))
    if "file_name" in item:
        return _Image(*map(item.get, _Image._fields))
    item.pop("segmentation", None)
    return item


def _categories(files, contents):
    """Id -> name, in order of the ids, of all files."""
    categories, origin = {}, {}
    for file, content in zip(files, contents):
        seen = set()
        for item in content["categories"]:
            number, name = (item.get("id"), item.get("name")) if isinstance(item, dict) else (None, None)
            if not _is_integer(number) or not isinstance(name, str):
                raise DataError(
                    f"{file} has a category with id {shortened(number)} and name {shortened(name)}; expected an "
                    "integer and a text."
                )
            if number in seen:
                raise DataError(f"{file} has two categories with the id {shortened(number)}.")
            seen.add(number)
            if categories.setdefault(number, name) != name:
                raise DataError(
                    f"Category {number} is {shortened(categories[number])} in {origin[number]} and {shortened(name)} "
                    f"in {file}; expected the same categories in both."
                )
            origin.setdefault(number, file)
    return {number: categories[number] for number in sorted(categories)}


def _without_empty_namesakes(categories, used):
    """Roboflow's root category has the data set's name, which may be a class's too, and no boxes."""
    namesakes = Counter(categories.values())
    empty = [number for number, name in categories.items() if namesakes[name] > 1 and not used[number]]
    kept = {number: name for number, name in categories.items() if number not in empty}
    if not empty or len(set(kept.values())) < len(kept) or set(categories.values()) != set(kept.values()):
        return categories, []
    lines = [f"category {number}, {categories[number]}: has no boxes and another's name, left out" for number in empty]
    return kept, lines


def _part(file, content, category_ids, box_format):
    """[`Annotations`], the folder of the images, and sentences."""
    images = content.pop("images")
    ids, names, sizes = [], [], np.zeros((len(images), 2), dtype="int64")
    for index, image in enumerate(images):
        if not isinstance(image, _Image) or not _is_integer(image.id):
            raise DataError(f"{file}: image {index}, counted from 0, has no file_name, or no id that is an integer.")
        ids.append(int(image.id))
        names.append(image.file_name)
        sizes[index] = _size(image, file)
    index_of = {number: index for index, number in enumerate(ids)}
    if len(index_of) < len(ids):
        raise DataError(f"{file} has two images with the id {shortened(_first_twice(ids))}.")
    for name in names:
        _check_name(name, file)
    folder = _image_folder(file, names)
    paths = [_path(folder, name, file) for name in names]
    if len(set(paths)) < len(paths):
        raise DataError(f"{file} has two images with the file_name {shortened(_first_twice(names))}.")
    columns, left_out, lines = _columns(file, content.pop("annotations"), index_of, category_ids)
    image_of_each, boxes, labels, crowd, areas, places, place = columns
    if box_format == "xywh":
        boxes[:, 2:] += boxes[:, :2]
    annotations = Annotations(
        SizedFiles(paths, sizes), image_of_each, boxes, labels, crowd, areas, places, place, ids=ids,
        left_out=left_out, spelling=box_format,
    )  # fmt: skip
    return annotations, folder, lines


def _size(image, file):
    """Width and height, 0 where the file does not say."""
    values = [value or 0 for value in (image.width, image.height)]
    if not all(_is_integer(value) and 0 <= value < 2**31 for value in values):
        raise DataError(
            f"{file}: image {shortened(image.id)} is {shortened(image.width)} wide and {shortened(image.height)} "
            "high; expected pixels."
        )
    return values


def _columns(file, rows, index_of, category_ids):
    """The annotations as arrays, sorted by image; what cannot be taken; sentences."""
    label_of = {number: label for label, number in enumerate(category_ids)}
    numbers = [row.id if isinstance(row, _Annotation) else None for row in rows]
    counts = Counter(number for number in numbers if type(number) is int)
    repeated = sum(count > 1 for count in counts.values())
    has_ids = len(counts) == len(rows) and all(abs(number) < 2**62 for number in counts)
    place = "annotation" if has_ids else "annotation number"
    images, labels, places = array("q"), array("q"), array("q")
    boxes, areas, crowd, left_out = array("d"), array("d"), array("b"), []
    for position, row in enumerate(rows):
        here = numbers[position] if has_ids else position
        try:
            image, label = index_of[row.image_id], label_of[row.category_id]
            box = array("d", row.bbox)
            area = float("nan") if row.area is None else array("d", [row.area])[0]
            is_crowd = (0, 1).index(row.iscrowd or 0)
            if len(box) != 4 or type(row.bbox) is not list:
                raise ValueError
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            left_out.append(f"{file}, {place} {here}: {_why_not(row, index_of, label_of)}")
            continue
        images.append(image)
        labels.append(label)
        places.append(here)
        boxes.extend(box)
        areas.append(area)
        crowd.append(is_crowd)
    images, labels, places = (np.array(values, dtype="int64") for values in (images, labels, places))
    order = np.argsort(images, kind="stable")
    boxes = np.array(boxes, dtype="float64").reshape(-1, 4)[order]
    areas, crowd = np.array(areas, dtype="float64")[order], np.array(crowd, dtype=bool)[order]
    lines = []
    if repeated:
        lines.append(f"{file}: {counted(repeated, 'annotation id')} used more than once; each annotation counts")
    return (images[order], boxes, labels[order], crowd, areas, places[order], place), left_out, lines


def _why_not(row, index_of, label_of):
    if not isinstance(row, _Annotation):
        return "has no bbox"
    if not _is_integer(row.image_id) or row.image_id not in index_of:
        return f"there is no image with the id {shortened(row.image_id)}"
    if not _is_integer(row.category_id) or row.category_id not in label_of:
        return f"there is no category with the id {shortened(row.category_id)}"
    if row.iscrowd not in (None, 0, 1):
        return f"iscrowd is {shortened(row.iscrowd)}, expected 0 or 1"
    if not isinstance(row.bbox, list) or len(row.bbox) != 4:
        return f"bbox is {shortened(row.bbox)}, expected four numbers"
    for each in row.bbox:
        if not _is_real(each):
            return f"bbox is a list with {shortened(each)}, expected four numbers"
    return f"area is {shortened(row.area)}, expected a number"


def _image_folder(file, names):
    """The folder beside the file that holds the images."""
    root = _root(file)
    name = file.stem.removeprefix("instances_")
    part = match[1] if (match := _PART_FILE.fullmatch(file.name)) else name
    inside = dict.fromkeys([name, part, file.stem])
    places = [root / each for each in inside] + [root / "images" / each for each in inside]
    places += [root / "images", root / "data", root, file.parent]
    if file.name == ROBOFLOW:
        places = [file.parent]
    sample = names[:: max(1, len(names) // _SAMPLE)]
    found, real = {}, set()
    for place in places:
        if place.is_dir() and (resolved := os.path.realpath(place)) not in real:
            real.add(resolved)
            if hits := [name for name in sample if os.path.isfile(place / name)]:
                found[place] = hits
    best = sorted(found, key=lambda place: -len(found[place]))
    for other in best[1:]:
        common = next((name for name in found[best[0]] if name in found[other]), None)
        if common is not None and not filecmp.cmp(best[0] / common, other / common, shallow=False):
            raise DataError(
                f"The images of {file} can be those in {best[0]} or those in {other}, where {common} is another "
                "image; leave one of the folders."
            )
    return best[0] if best else next((place for place in places if place.is_dir()), root)


def _root(file):
    """The folder of a COCO file's data, which no image lies outside of."""
    return file.parent.parent if file.parent.name == "annotations" else file.parent


def _check_name(name, file):
    """Raises `DataError` unless an image's file_name can be a path inside the data."""
    if not isinstance(name, str) or not name or "\0" in name or len(name) > MAX_NAME or not _can_be_encoded(name):
        raise DataError(f"{file} has an image whose file_name is {shortened(name)}; expected a path.")
    if name[0] in "/\\" or (":" in name and PureWindowsPath(name).is_absolute()):
        raise DataError(f"{file} has an image whose file_name leads out of the data, {shortened(name)}.")


def _path(folder, name, file):
    path = os.path.join(folder, name)
    if ".." in name:
        path, root = os.path.normpath(path), os.path.normpath(_root(file))
        if os.path.relpath(path, root).startswith(".."):
            raise DataError(f"{file} has an image whose file_name leads out of the data, {shortened(name)}.")
    return path


def _can_be_encoded(name):
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def _first_twice(values):
    return next(value for value, count in Counter(values).items() if count > 1)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_real(value):
    return _is_number(value) and (isinstance(value, float) or abs(value) < 2**1000)


def _is_integer(value):
    return _is_number(value) and (isinstance(value, int) or value.is_integer())
