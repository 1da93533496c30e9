"""Image folders: ``DATA/train/CLASS/…`` with ``DATA/val/CLASS/…`` (see `TRAIN_NAMES` and `VALIDATION_NAMES`), or
``DATA/CLASS/…``.

For distillation the images to learn from may lie in ``DATA`` without classes.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..files.images import find_images, is_image_name, walk
from ..wording import counted
from .decoding import open_image
from .splits import VALIDATION_NAMES, Data, Split


TRAIN_NAMES = ("train", "training")  # in any case, and so `VALIDATION_NAMES`


class ImageFiles(Sequence):
    """Files, decoded as PaddleClas decodes."""

    def __init__(self, paths):
        self.paths = np.array([os.fsencode(path) for path in paths])  # one block of memory, which forked workers share

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return open_image(self.name(index))

    def name(self, index):
        return os.fsdecode(bytes(self.paths[index]))

    def key(self, index):
        name = self.name(index)
        return f"{os.path.abspath(name)} {os.path.getsize(name) if os.path.exists(name) else None}"


def read_class_folders(folder, needs_labels, class_folders):
    """
    Args:
        folder (`Path`): an image folder.
        needs_labels (`bool`): refuse images that lie in no folder of a class.
        class_folders (`"outer"`, `"inner"` or `None`): see [`load_data`].

    Returns:
        [`Data`]: `understood` says how the folder was read.

    Raises:
        `DataError`: there are no images, or the folders can be read in two ways.
    """
    train_folder, validation_folder, unused = _parts(folder)
    classes = _class_folders(train_folder, class_folders)
    if not classes and needs_labels:
        raise DataError(
            f"{train_folder} holds no folders, one per class, with the images of the class inside. Images without "
            "classes can only be learnt from with --teacher."
        )
    train = _labelled_files(train_folder, classes) if classes else Split(ImageFiles(find_images([train_folder])), None)
    validation, used = None, list(classes.values())
    if validation_folder is not None:
        found = _class_folders(validation_folder, class_folders)
        unknown = sorted(set(found) - set(classes))
        if unknown and classes:
            raise DataError(f"{validation_folder} has classes that {train_folder} has not: {', '.join(unknown[:5])}.")
        classes = classes or found
        places = {name: found.get(name, []) for name in classes}
        validation = _labelled_files(validation_folder, places, may_lack_classes=True)
        used += places.values()
    _refuse_the_same_folder_twice(used)
    understood = _understood(train_folder, validation_folder, classes, unused)
    if classes:
        understood += _images_beside_classes([train_folder, validation_folder], class_folders == "inner")
    return Data(
        str(folder), train, validation, list(classes) or None, str(validation_folder or ""), understood=understood
    )


def _parts(folder):
    """The folders with the images to learn from and to validate with (``None``: none), and the names of those left
    unused."""
    names = [entry.name for entry in _folders(folder)]
    trains, held_outs = ([name for name in names if name.lower() in part] for part in (TRAIN_NAMES, VALIDATION_NAMES))
    held_outs.sort(key=lambda name: VALIDATION_NAMES.index(name.lower()))
    for same in (trains, [name for name in held_outs if name.lower() == held_outs[0].lower()]):
        if len(same) > 1:
            raise DataError(f"{folder} holds {' and '.join(same)}, which mean the same part; keep one of them.")
    others = [name for name in names if name not in trains and name not in held_outs]
    if not trains and held_outs and not others:
        raise DataError(f"{folder} holds {' and '.join(held_outs)} but no train; name the folder to learn from train.")
    are_classes = not trains or (others and not _folders(folder / trains[0]))  # one may be called train, or test
    if are_classes:
        return folder, None, []
    validation = folder / held_outs[0] if held_outs else None
    return folder / trains[0], validation, [*held_outs[1:], *others]


def _folders(folder):
    entries = (entry for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    return sorted(entries, key=lambda entry: entry.name)


def _class_folders(folder, class_folders):
    """The name of each class and its folders. Where folders hold nothing but folders, ``class_folders`` says which are
    meant."""
    outer = {entry.name: [Path(entry.path)] for entry in _folders(folder)}
    inside = {name: _folders(path) for name, (path,) in outer.items()}
    if class_folders == "inner" and outer and not any(inside.values()):
        raise DataError(f"{folder} holds no folders in its folders; leave --class-folders inner out.")
    are_nested = any(inside.values()) and not any(_holds_images(path) for (path,) in outer.values())
    if class_folders == "outer" or (class_folders is None and not are_nested):
        return outer
    inner = {}
    for entries in inside.values():
        for entry in entries:
            inner.setdefault(entry.name, []).append(Path(entry.path))
    if class_folders == "inner":
        return dict(sorted(inner.items()))
    example = next(name for name, entries in inside.items() if entries)
    raise DataError(
        f"{folder} holds folders in folders ({example}/{inside[example][0].name}): pass --class-folders outer if the "
        f"classes are {_some(outer)}, or --class-folders inner if they are {_some(inner)}."
    )


def _images_beside_classes(parts, classes_are_inner):
    """A sentence on images that lie beside the folders of the classes of these parts, if there are any."""
    folders = [part for part in parts if part is not None]
    if classes_are_inner:
        folders += [Path(entry.path) for part in folders for entry in _folders(part)]
    counts = {folder: sum(map(_is_image, os.scandir(folder))) for folder in folders}
    places = [str(folder) for folder, count in counts.items() if count]
    if not places:
        return []
    return [
        f"not used: {counted(sum(counts.values()), 'image')} directly in {_some(places)}, beside the folders of the "
        "classes"
    ]


def _refuse_the_same_folder_twice(places):
    """Links can make one folder, or one inside a class, belong to two classes, or to both parts."""
    seen = {}
    for place in (folder for each in places for root in each for folder, _ in walk(root)):
        real = os.path.realpath(place)
        if real in seen:
            raise DataError(
                f"{seen[real]} and {place} are the same folder, so its images would be used twice; remove a link."
            )
        seen[real] = place


def _holds_images(folder):
    return any(map(_is_image, os.scandir(folder)))


def _is_image(entry):
    return entry.is_file() and is_image_name(entry.name)


def _some(names, limit=5):
    names = list(names)
    return ", ".join(names[:limit]) + (f" … ({len(names)} in all)" if len(names) > limit else "")


def _labelled_files(folder, classes, may_lack_classes=False):
    paths, labels, empty = [], [], []
    for index, (name, places) in enumerate(classes.items()):
        files = []
        for place in places:
            with contextlib.suppress(DataError):  # a folder without an image
                files += find_images([place])
        if not files:
            empty.append(name)
        paths += files
        labels += [index] * len(files)
    if empty and not may_lack_classes:
        raise DataError(f"{folder} has classes without an image: {_some(empty)}. Fill or remove these folders.")
    return Split(ImageFiles(paths), labels)


def _understood(train_folder, validation_folder, classes, unused):
    lines = []
    if classes:
        lines.append(f"classes: the folders in {train_folder}: {_some(classes)}")
    nested = [name for name, places in classes.items() if len(places) == 1 and _folders(places[0])]
    if nested:
        lines.append(f"images in folders inside a class belong to the class: {_some(nested)}")
    if validation_folder is not None:
        lines.append(f"validation: {validation_folder}")
    if unused:
        lines.append(f"not used: {_some(unused)}")
    return lines
