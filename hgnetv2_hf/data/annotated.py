"""What the readers of all formats hand over, and how it becomes images with objects: which files there are, how large
they are, which boxes can be."""

import dataclasses
import io
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Optional

import numpy as np

from ..errors import DataError
from ..files.images import UNREADABLE
from ..wording import counted, printable, sentence
from .class_folders import ImageFiles
from .datasets_library import Column
from .decoding import measure, open_sized
from .objects import DetectionSplit, ObjectTable


MAX_NAME = 4096  # bytes of a path; no system takes more
_MOST = 2.0**31  # pixels; a coordinate beyond is no coordinate


@dataclasses.dataclass
class Annotations:
    """
    One part of a data set as its files say it, nothing checked.

    Attributes:
        images (`Sequence`): [`SizedFiles`] or [`SizedColumn`]; a size of 0 where the annotations declare none.
        image_of_each (`np.ndarray`): (objects,) int64, ascending: the image that each object is in.
        boxes (`np.ndarray`): (objects, 4) float64: left, top, right, bottom in pixels, or where `relative` in 0…1.
        labels, crowd, areas (`np.ndarray`): (objects,); an area is NaN where the file has none.
        places (`np.ndarray`): (objects,) int64: where each stands, for people: `place` 12.
        place (`str`): "annotation", "line" or "object".
        ids (`list[int]`, *optional*): of the images.
        left_out (`list[str]`): what the reader could not take, each with the reason.
        spelling (`str`): "" or how the reader took the boxes, where that can be wrong: "xywh", "xyxy".
    """

    images: Sequence
    image_of_each: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    places: np.ndarray
    place: str
    relative: bool = False
    ids: Optional[list[int]] = None
    left_out: list[str] = dataclasses.field(default_factory=list)
    spelling: str = ""


@dataclasses.dataclass
class Found:
    """What a reader found: the parts, the classes, and sentences on how they were read."""

    train: Annotations
    validation: Optional[Annotations]
    classes: list[str]
    held_out: str
    understood: list[str]
    category_ids: Optional[list[int]] = None


class SizedFiles(ImageFiles):
    """Image files of which the sizes are known: those that the annotations declare, or the files' own."""

    def __init__(self, paths, sizes=None):
        super().__init__(paths)
        self.sizes = np.zeros((len(paths), 2), dtype="int64") if sizes is None else np.asarray(sizes).reshape(-1, 2)

    def __getitem__(self, index):
        return open_sized(self.file(index), tuple(self.sizes[index].tolist()))

    def file(self, index):
        return self.name(index)


class SizedColumn(Column):
    """The images of a data set of the ``datasets`` library, of which the sizes are known."""

    def __init__(self, dataset, column, sizes):
        super().__init__(dataset, column)
        self.sizes = sizes

    def __getitem__(self, index):
        return open_sized(self.file(index), tuple(self.sizes[index].tolist()))

    def file(self, index):
        image = self.dataset[int(index)][self.column]
        if not image:
            raise ValueError("there is no image in this row")
        return io.BytesIO(image["bytes"]) if image.get("bytes") is not None else image["path"]

    def name(self, index):
        image = self.dataset[int(index)][self.column]
        return (image or {}).get("path") or f"image {index}"


def as_split(annotations, classes, source, workers):
    """
    Args:
        annotations ([`Annotations`])
        classes (`list[str]`)
        source (`str`): how errors call the data.
        workers (`int`, *optional*): threads that read the headers of images without a declared size.

    Returns:
        `tuple[DetectionSplit, list[str], list[str]]`: the part; what was left out, each with its reason; and sentences
        on what was changed.

    Raises:
        `DataError`: most boxes leave their images in the spelling that the reader took, and would not in the other.
    """
    unmeasured = _measure(annotations.images, workers)
    left_out = [*annotations.left_out, *(f"{annotations.images.name(i)}: {why}" for i, why in unmeasured.items())]
    sizes = annotations.images.sizes.astype("float64")[annotations.image_of_each]
    boxes = annotations.boxes * np.tile(sizes, 2) if annotations.relative else annotations.boxes
    has_size = np.ones(len(annotations.images), dtype=bool)
    has_size[list(unmeasured)] = False
    of_image = has_size[annotations.image_of_each]
    _refuse_the_other_spelling(boxes[of_image], sizes[of_image], annotations.spelling, source)
    boxes, reasons, clipped, most = _inside(boxes, sizes)
    unknown = (annotations.labels < 0) | (annotations.labels >= len(classes))
    reasons[unknown & (reasons == 0)] = _REASONS.index("class")
    for row in np.flatnonzero((reasons > 0) & of_image):
        name = annotations.images.name(annotations.image_of_each[row])
        left_out.append(
            f"{name}, {annotations.place} {annotations.places[row]}: "
            f"{_said(_REASONS[reasons[row]], annotations.boxes[row], sizes[row], annotations.labels[row], classes)}"
        )
    kept = (reasons == 0) & of_image
    changed = []
    if (number := int((clipped & kept).sum())) > 0:
        changed.append(
            f"clipped: {counted(number, 'box', 'boxes')} reached over the edge of the image, by up to "
            f"{most[clipped & kept].max():.4g} pixels"
        )
    areas = annotations.areas[kept]
    own = (boxes[kept, 2] - boxes[kept, 0]) * (boxes[kept, 3] - boxes[kept, 1])
    usable = np.isfinite(areas) & (areas > 0)
    if (number := int((~usable & ~np.isnan(areas)).sum())) > 0:
        changed.append(f"areas: {counted(number, 'area')} that cannot be replaced by the box's")
    counts = np.bincount(annotations.image_of_each[kept], minlength=len(annotations.images))
    table = ObjectTable(
        boxes[kept], annotations.labels[kept], annotations.crowd[kept], np.where(usable, areas, own), counts
    )
    split = DetectionSplit(annotations.images, table, annotations.ids)
    if unmeasured:
        split = split.select(np.flatnonzero(has_size))
    return split, left_out, changed


_REASONS = ["", "finite", "empty", "outside", "class"]


def _inside(boxes, sizes):
    """
    Returns:
        The boxes clipped to their images; (objects,) the index in ``_REASONS`` of why each cannot be, else 0; which
        were clipped; and by how many pixels.
    """
    with np.errstate(all="ignore"):
        reasons = np.zeros(len(boxes), dtype="int64")
        limits = np.tile(sizes, 2)
        inside = np.clip(boxes, 0, limits)
        # In reverse, so that the first of them is what is said.
        reasons[(inside[:, :2] >= inside[:, 2:]).any(axis=1)] = _REASONS.index("outside")
        reasons[~(boxes[:, :2] < boxes[:, 2:]).all(axis=1)] = _REASONS.index("empty")
        reasons[~(np.abs(boxes) < _MOST).all(axis=1)] = _REASONS.index("finite")
        beyond = np.abs(boxes - inside).max(axis=1, initial=0)
    return inside, reasons, beyond > 0, beyond


def _said(reason, box, size, label, classes):
    numbers = ", ".join(f"{value:.6g}" for value in box)
    return {
        "finite": f"the box ({numbers}) is not made of finite numbers",
        "empty": f"the box ({numbers}) has no width or no height",
        "outside": f"the box ({numbers}) lies outside the image of {size[0]:.0f}×{size[1]:.0f} pixels",
        "class": f"there is no class {label}; there {'is' if len(classes) == 1 else 'are'} "
        f"{counted(len(classes), 'class', 'classes')}, counted from 0",
    }[reason]


def _refuse_the_other_spelling(boxes, sizes, spelling, source):
    """``boxes``: as corners, made from the numbers of the file in this ``spelling``."""
    if not spelling or not len(boxes):
        return
    slack = 1 + 0.02 * np.tile(sizes, 2)  # pixels; annotations overshoot
    first, second = boxes[:, :2], boxes[:, 2:]
    other = second - first if spelling == "xywh" else first + second  # what the other spelling makes of them
    with np.errstate(all="ignore"):
        fits = ((boxes >= -slack) & (boxes <= np.tile(sizes, 2) + slack)).all(axis=1) & (first < second).all(axis=1)
        others = np.concatenate([first, other], axis=1)
        fits_other = ((others >= -slack) & (others <= np.tile(sizes, 2) + slack)).all(axis=1)
        fits_other &= (first < other).all(axis=1)
    # Corners taken for sizes fit by chance in a quarter of the cases; sizes taken for corners hardly ever do.
    if (~fits).mean() > 0.2 and fits_other.mean() > 0.95:
        taken, meant = _SPELLINGS[spelling], _SPELLINGS["xyxy" if spelling == "xywh" else "xywh"]
        raise DataError(
            f"{counted(int((~fits).sum()), 'box', 'boxes')} of {len(boxes)} in {source} cannot be {taken}, which they "
            f"were taken for, but nearly all can be {meant}; pass box_format "
            f"{'xyxy' if spelling == 'xywh' else 'xywh'} if that is what they are."
        )


_SPELLINGS = {"xywh": "left, top, width, height (xywh)", "xyxy": "left, top, right, bottom (xyxy)"}


def _measure(images, workers):
    """Fills in the sizes that the annotations do not declare. Index -> why that image has none."""
    missing = np.flatnonzero((images.sizes <= 0).any(axis=1))

    def size(index):
        try:
            return measure(images.file(index))
        except FileNotFoundError:
            return "there is no such file"
        except UNREADABLE as error:
            return sentence(error)

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        found = list(pool.map(size, missing.tolist()))
    unmeasured = {}
    for index, answer in zip(missing.tolist(), found):
        if isinstance(answer, str):
            unmeasured[index] = answer
        else:
            images.sizes[index] = answer
    return unmeasured


def check_class_names(names, source):
    """Raises `DataError` unless every class has a name that can be written, and no two the same."""
    if not names:
        raise DataError(f"{source} names no class.")
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"Class {number} of {source} has no name; expected text.")
        if len(name) > MAX_NAME or printable(name) != name:
            raise DataError(f"Class {number} of {source} has a name that cannot be written: {name[:40]!a}.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{source} has two classes of the same name, {twice[0]}; give each its own.")


def shortened(value, limit=40):
    """A value of a file as an error shows it: short, whatever it holds."""
    if isinstance(value, (dict, list, tuple, set)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a huge number"
    return printable(text if len(text) <= limit else f"{text[:limit]}…")
