"""What is wrong with images and objects before anything is learnt from them."""

import dataclasses
import hashlib
import os

import numpy as np

from ..errors import DataError
from ..wording import counted
from .annotated import SizedFiles
from .checking import unreadable
from .objects import DetectionData
from .splits import Selection


NUM_QUERIES = 300  # of the detectors; they find no more objects in an image
_TITLES = {"train": "training", "validation": "validation"}
_SHOWN = 5
_BLOCK = 2**20  # bytes that are hashed at once


def check_detection_data(data, workers=None):
    """
    Decodes every image once, with a progress bar, and takes those out that are missing, cannot be read, or have
    another size than the annotations declare; `skipped` names them. Files of the same content in both parts are found
    by size and SHA-256.

    Args:
        data ([`DetectionData`])
        workers (`int`, *optional*): threads that decode; by default one per core.

    Returns:
        [`DetectionData`]: the same, without them. Held-out copies of training images go back to the training images.

    Raises:
        `DataError`: an image of the training part is also in the validation part, or no box is left to learn from.
    """
    before = data
    for part in ("train", "validation"):
        split = getattr(data, part)
        bad = {} if split is None else _missing(split.images)
        if split is not None and len(bad) == len(split):
            raise DataError(
                f"None of the {counted(len(split), f'{_TITLES[part]} image')} of {data.title} is there; the first is "
                f"{split.images.name(0) if len(split) else 'none'}."
            )
        data = _without(data, part, bad)
        split = getattr(data, part)
        bad = {} if split is None else unreadable(split.images, f"checking {_TITLES[part]} images", workers)
        data = _without(data, part, bad)
    data = _without_copies(data)
    check_objects(data)
    return described(data, before)


def _without(data, part, bad):
    if not bad:
        return data
    split = getattr(data, part)
    skipped = [f"{split.images.name(index)}: {reason}" for index, reason in bad.items()]
    kept = split.select([index for index in range(len(split)) if index not in bad])
    return dataclasses.replace(data, **{part: kept}, skipped=[*data.skipped, *skipped])


def _missing(images):
    """Index -> why there is no image, of files."""
    paths = file_paths(images) or []
    return {index: "there is no such file" for index, path in enumerate(paths) if not os.path.exists(path)}


def file_paths(images):
    """The paths of images that are files, else ``None``."""
    source = images
    while isinstance(source, Selection):
        source = source.images
    return [images.name(index) for index in range(len(images))] if isinstance(source, SizedFiles) else None


def refuse_common_files(data):
    """Raises `DataError` where a file is in both parts; contents are compared by [`check_detection_data`]."""
    if data.validation is None:
        return
    train, validation = (file_paths(split.images) for split in (data.train, data.validation))
    if train is None or validation is None:
        return
    train = {os.path.abspath(path) for path in train}
    common = [path for path in validation if os.path.abspath(path) in train]
    if common:
        raise DataError(
            f"{counted(len(common), 'image')} of {data.title} {'is' if len(common) == 1 else 'are'} in the training "
            f"part and in the validation part; the first: {common[0]}."
        )


def _without_copies(data):
    """Copies in parts that were given are refused; where images were held out, a copy is learnt from and not asked."""
    copies = _copies(data.train, data.validation)
    if not copies:
        return data
    if not _was_drawn(data):
        index, original = next(iter(copies.items()))
        raise DataError(
            f"{counted(len(copies), 'validation image')} of {data.title} {'has' if len(copies) == 1 else 'have'} the "
            f"content of a training image; the first: {data.validation.images.name(index)} and "
            f"{data.train.images.name(original)}."
        )
    source, chosen = data.train.images.images, data.validation.images.indices
    moved = np.isin(np.arange(len(chosen)), list(copies))
    if moved.all():
        raise DataError(f"Every image held out of {data.title} has the content of a training image; remove copies.")
    return _moved_to_training(data, source, moved)


def _was_drawn(data):
    """Whether both parts were chosen out of the same images."""
    parts = [data.train.images, data.validation.images]
    return all(isinstance(each, Selection) for each in parts) and parts[0].images is parts[1].images


def _moved_to_training(data, source, moved):
    train, validation = data.train, data.validation
    indices = np.concatenate([train.images.indices, validation.images.indices[moved]])
    tables = [train.table(), validation.table().take(np.flatnonzero(moved))]
    counts = np.concatenate([np.diff(table.starts) for table in tables])
    columns = [
        np.concatenate([getattr(table, name) for table in tables]) for name in ("boxes", "labels", "crowd", "areas")
    ]
    ids = None
    if train.ids is not None:
        ids = [*train.ids, *(validation.ids[index] for index in np.flatnonzero(moved))]
    grown = dataclasses.replace(
        train, images=Selection(source, indices), objects=type(tables[0])(*columns, counts), ids=ids
    )
    line = f"copies: {counted(int(moved.sum()), 'image')} held out had the content of a training image, learnt from"
    return dataclasses.replace(
        data, train=grown, validation=validation.select(np.flatnonzero(~moved)), understood=[*data.understood, line]
    )


def _copies(train, validation):
    """Index of a validation image -> that of a training image of the same content, of files."""
    if validation is None:
        return {}
    paths = [file_paths(split.images) for split in (train, validation)]
    if None in paths:
        return {}
    by_size = [_by_size(each) for each in paths]
    copies = {}
    for size in by_size[0].keys() & by_size[1].keys():
        originals = {_content(paths[0][index]): index for index in reversed(by_size[0][size])}
        for index in by_size[1][size]:
            if (original := originals.get(_content(paths[1][index]))) is not None:
                copies[index] = original
    return dict(sorted(copies.items()))


def _by_size(paths):
    sizes = {}
    for index, path in enumerate(paths):
        sizes.setdefault(os.path.getsize(path), []).append(index)
    return sizes


def _content(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.digest()


def check_objects(data):
    """Raises `DataError` unless there are images and boxes to learn from, and images to validate with."""
    first = f" {len(data.skipped)} were left out; the first: {data.skipped[0]}." if data.skipped else ""
    if not len(data.train):
        raise DataError(f"{data.title} holds no image to learn from.{first}")
    if data.validation is not None and not len(data.validation):
        raise DataError(f"{data.held_out} of {data.title} holds no image to validate with; fill or remove it.{first}")
    if data.train.table().crowd.all():
        raise DataError(f"{data.title} holds no box to learn from.{first}")


def described(data, before=None):
    """
    Args:
        data ([`DetectionData`])
        before ([`DetectionData`], *optional*): what it was made from; its counts are replaced.

    Returns:
        [`DetectionData`]: with sentences that count what it holds.
    """
    old = [] if before is None else _counts(before)
    kept = [line for line in data.understood if line not in old]
    return dataclasses.replace(data, understood=[*kept, *_counts(data)])


def _counts(data: DetectionData):
    lines = []
    for part, title in _TITLES.items():
        split = getattr(data, part)
        if split is None:
            continue
        table = split.table()
        per_image = np.diff(table.starts)
        where = f" ({data.held_out})" if title == "validation" and data.held_out else ""
        lines.append(
            f"{title}{where}: {counted(len(split), 'image')}, {counted(len(table.boxes), 'object')}, "
            f"{counted(int((per_image == 0).sum()), 'image')} without objects"
        )
        if table.crowd.any():
            lines.append(
                f"{title}: {counted(int(table.crowd.sum()), 'object')} of these a crowd or difficult: not learnt "
                "from, ignored in evaluation"
            )
        lines += _oddities(title, split, table, per_image)
    lines.append(f"classes: {len(data.classes)}: {_some(data.classes)}")
    table = data.train.table()
    learnt = np.bincount(table.labels[~table.crowd], minlength=len(data.classes))
    without = [name for name, count in zip(data.classes, learnt) if not count]
    if without:
        lines.append(f"classes without boxes to learn from: {_some(without)}")
    return lines


def _oddities(title, split, table, per_image):
    lines = []
    images = table.image_of_each()
    rows = np.column_stack([images, table.labels, table.boxes])
    rows = rows[np.lexsort(rows.T)]
    repeated = int((rows[1:] == rows[:-1]).all(axis=1).sum())
    if repeated:
        lines.append(f"{title}: {counted(repeated, 'object')} with the class and the box of another in the same image")
    many = np.flatnonzero(per_image > NUM_QUERIES)
    if len(many):
        lines.append(
            f"{title}: {counted(len(many), 'image')} with more than {NUM_QUERIES} objects, which is what detectors of "
            f"{NUM_QUERIES} queries find; the first: {split.images.name(many[0])} with {per_image[many[0]]}"
        )
    return lines


def _some(names):
    return ", ".join(names[:_SHOWN]) + (f" … ({len(names)} in all)" if len(names) > _SHOWN else "")
