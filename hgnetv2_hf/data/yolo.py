"""YOLO's format: ``data.yaml`` with the classes and the folders of images, and a text file of boxes per image."""

import os
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..files.images import find_images
from ..files.yaml_file import read_yaml
from ..wording import counted, sentence
from .annotated import Annotations, Found, SizedFiles, check_class_names, shortened
from .splits import VALIDATION_NAMES


_SUFFIXES = (".yaml", ".yml")
_LARGEST = 2**18  # bytes of a description; PyYAML takes seconds for more
_PART_KEYS = ("train", *VALIDATION_NAMES)


def find_yolo(folder):
    """The descriptions in a folder: `data.yaml`, and YAML files that name images or classes."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    return [path for path in files if path.stem == "data" or _describes_images(path)]


def _describes_images(path):
    try:
        with open(path, "rb") as file:
            lines = file.read(_LARGEST).splitlines()
    except OSError:
        return False
    return any(line.startswith((b"train:", b"val:", b"names:", b'"train"', b"nc:")) for line in lines)


def read_yolo(source):
    """
    Args:
        source (`Path`): a folder with one such YAML file, or the file.

    Returns:
        [`Found`]. Images without a label file are images without objects. Rows of more than five numbers are polygons
        and become their bounding boxes, or, where the description has `kpt_shape`, boxes with key points.

    Raises:
        `DataError`: there is no such description, or what it names is not there.
    """
    file = source if source.is_file() else _only_description(source)
    description = read_yaml(file, _LARGEST, DataError)
    names = _class_names(description, file)
    root = _root(description, file)
    is_pose = description.get("kpt_shape") is not None
    keys = [key for key in _PART_KEYS if description.get(key)]
    if "train" not in keys:
        raise DataError(f"{file} names no images to learn from; expected train: and a folder.")
    train, lines = _part(description["train"], "train", root, file, is_pose)
    validation, understood = None, [f"format: YOLO: {file}", *lines]
    if len(keys) > 1:
        validation, lines = _part(description[keys[1]], keys[1], root, file, is_pose)
        understood += lines
    if len(keys) > 2:
        understood.append(f"not used: {', '.join(keys[2:])} of {file}")
    held_out = f"{keys[1]} of {file}" if len(keys) > 1 else ""
    return Found(train, validation, names, held_out, understood)


def _only_description(folder):
    files = find_yolo(folder)
    if not files:
        raise DataError(f"{folder} holds no data.yaml, which names the classes and the folders of images.")
    if len(files) > 1:
        named = [path for path in files if path.stem == "data"]
        if len(named) != 1:
            raise DataError(f"{folder} holds {files[0].name} and {files[1].name}; pass the file that is meant.")
        return named[0]
    return files[0]


def _class_names(description, file):
    names = description.get("names")
    if isinstance(names, dict):
        if not all(type(key) is int for key in names) or sorted(names) != list(range(len(names))):
            raise DataError(f"The names in {file} are not numbered 0, 1, 2 and so on.")
        names = [names[key] for key in sorted(names)]
    if not isinstance(names, list):
        raise DataError(f"{file} has no names of classes; expected names: and a list.")
    for number, name in enumerate(names):
        if isinstance(name, bool) or not isinstance(name, (str, int, float)):
            raise DataError(
                f"Class {number} in {file} is read as {shortened(name)} by YAML; write its name in quotes."
            )
    count = description.get("nc")
    if count is not None and count != len(names):
        raise DataError(f"{file} has nc: {shortened(count)}, but {counted(len(names), 'name')}.")
    try:
        names = [str(name) for name in names]
    except ValueError as error:
        raise DataError(f"A name of a class in {file} is a huge number.") from error
    check_class_names(names, str(file))
    return names


def _root(description, file):
    """The folder that the parts are named from: `path`, beside the file, or the file's own."""
    path = description.get("path")
    if path is None or path == "":
        return file.parent
    named = file.parent / _as_path(path, "path", file)
    return named if named.is_dir() else file.parent


def _as_path(value, key, file):
    if not isinstance(value, str) or not value or "\0" in value or len(value) > 4096:
        raise DataError(f"{file} has {key}: {shortened(value)}; expected a path.")
    return value


def _part(value, key, root, file, is_pose):
    """[`Annotations`] and sentences."""
    paths, twice = [], 0
    for entry in value if isinstance(value, list) else [value]:
        place = _place(_as_path(entry, key, file), key, root, file)
        paths += _listed(place, root) if place.is_file() else find_images([place])
    unique = list(dict.fromkeys(os.path.normpath(path) for path in paths))
    twice = len(paths) - len(unique)
    annotations, lines = _labels(unique, is_pose)
    if twice:
        lines.append(f"{key}: {counted(twice, 'image')} named more than once, used once")
    return annotations, lines


def _place(entry, key, root, file):
    """Where a part is: as it says, or, for Roboflow's `../train/images`, beside the file."""
    stripped = entry
    while stripped.startswith(("../", "./")):
        stripped = stripped.partition("/")[2]
    for place in (root / entry, file.parent / entry, root / stripped, file.parent / stripped):
        if place.exists():
            return place
    raise DataError(f"There is no {root / entry}, which {file} names as {key}.")


def _listed(file, root):
    """The images in a list, a line each, from the list's folder or from the data's."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as a list of images: {sentence(error)[:200]}.") from error
    lines = [_as_path(line, "a line", file) for line in lines if line]
    if not lines:
        raise DataError(f"{file} lists no image.")
    beside = os.path.exists(file.parent / lines[0])
    return [os.path.join(file.parent if beside else root, line) for line in lines]


def _labels(paths, is_pose):
    left_out, kept, columns = [], [], []
    without, polygons, folders = 0, 0, {}
    for path in paths:
        file = _label_file(path, folders)
        try:
            with open(file, encoding="utf-8-sig") as stream:
                text = stream.read()
        except FileNotFoundError:
            without += 1
            text = ""
        except (OSError, ValueError) as error:
            left_out.append(f"{path}: {file} cannot be read: {sentence(error)[:100]}")
            continue
        try:
            rows, found = _rows(text, is_pose)
        except ValueError as error:
            left_out.append(f"{path}: {file}, {sentence(error)}")
            continue
        polygons += found
        columns += [(len(kept), *row) for row in rows]
        kept.append(path)
    lines = []
    if without:
        lines.append(f"label files: {counted(without, 'image')} without one, taken for images without objects")
    if polygons:
        lines.append(f"polygons: {counted(polygons, 'row')}, each taken as its bounding box")
    if is_pose:
        lines.append("not used: the key points")
    table = np.array(columns, dtype="float64").reshape(-1, 7)
    image_of_each, line, labels = (table[:, column].astype("int64") for column in range(3))
    count = len(table)
    annotations = Annotations(
        SizedFiles(kept), image_of_each, table[:, 3:], labels, np.zeros(count, dtype=bool), np.full(count, np.nan),
        line, "line", relative=True, left_out=left_out,
    )  # fmt: skip
    return annotations, lines


def _label_file(path, folders):
    """In `labels` where the image is in `images`, else beside it."""
    folder, name = os.path.split(path)
    if folder not in folders:
        parts = Path(folder).parts
        last = max((index for index, part in enumerate(parts) if part == "images"), default=None)
        labels = Path(folder) if last is None else Path(*parts[:last], "labels", *parts[last + 1 :])
        folders[folder] = str(labels) if labels.is_dir() else folder
    return os.path.join(folders[folder], f"{os.path.splitext(name)[0]}.txt")


def _rows(text, is_pose):
    """
    Returns:
        `tuple[list, int]`: (line, class, left, top, right, bottom) of each row, and how many were polygons.

    Raises:
        `ValueError`: a row is none.
    """
    rows, polygons = [], 0
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            label, *values = map(float, words)
        except ValueError as error:
            raise ValueError(f"line {number} is not made of numbers: {shortened(line)}") from error
        if not label.is_integer() or abs(label) > 2**31:
            raise ValueError(f"line {number} starts with {label:g}, expected the number of a class")
        is_polygon = not is_pose and len(values) >= 6 and len(values) % 2 == 0
        if is_polygon:
            polygons += 1
            corners = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
        elif len(values) == 4 or (is_pose and len(values) > 4):
            x, y, width, height = values[:4]
            corners = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        else:
            raise ValueError(
                f"line {number} has {counted(len(words), 'number')}, expected 5 (class, centre x and y, width, height)"
            )
        rows.append((number, int(label), *corners))
    return rows, polygons
