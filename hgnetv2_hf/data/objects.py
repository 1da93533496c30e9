"""Images with objects in them: the parts of a data set for detection, and what is held out of them."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Optional

import numpy as np

from .splits import Selection


@dataclasses.dataclass(frozen=True)
class Objects:
    """
    The objects of one image; ``n`` is 0 where there is none.

    Attributes:
        boxes (`np.ndarray`): (n, 4) float64: left, top, right, bottom in pixels of the image, which is upright (EXIF
            rotation applied) unless the annotations declare the size of the stored pixels. Never rounded.
        labels (`np.ndarray`): (n,) int64, the index of each one's class.
        crowd (`np.ndarray`): (n,) bool: never learnt from, and ignored in evaluation as COCO's tools do. COCO's
            `iscrowd`; Pascal VOC's `difficult` counts as crowd too.
        areas (`np.ndarray`): (n,) float64 in square pixels: COCO's `area` where the file has it (a mask's), else the
            box's.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray

    def __len__(self):
        return len(self.boxes)


class ObjectTable(Sequence):
    """The [`Objects`] of many images in four arrays, which forked workers share.

    Args:
        boxes, labels, crowd, areas: of all images, those of one image beside each other.
        counts (`np.ndarray`): (images,), how many objects each image has.
    """

    def __init__(self, boxes, labels, crowd, areas, counts):
        self.boxes = np.ascontiguousarray(boxes, dtype="float64").reshape(-1, 4)
        self.labels = np.ascontiguousarray(labels, dtype="int64")
        self.crowd = np.ascontiguousarray(crowd, dtype=bool)
        self.areas = np.ascontiguousarray(areas, dtype="float64")
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype="int64")])

    def __len__(self):
        return len(self.starts) - 1

    def __getitem__(self, index):
        index = range(len(self))[index]
        rows = slice(self.starts[index], self.starts[index + 1])
        return Objects(self.boxes[rows], self.labels[rows], self.crowd[rows], self.areas[rows])

    def image_of_each(self):
        """(objects,) int64: the index of the image that each object is in."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def take(self, indices):
        """The objects of these images, in this order."""
        indices = np.asarray(indices, dtype="int64")
        counts = np.diff(self.starts)[indices]
        ends = np.cumsum(counts)
        rows = np.arange(ends[-1] if len(ends) else 0) + np.repeat(self.starts[indices] - (ends - counts), counts)
        return ObjectTable(self.boxes[rows], self.labels[rows], self.crowd[rows], self.areas[rows], counts)


@dataclasses.dataclass(frozen=True)
class DetectionSplit:
    """
    Images, decoded when they are asked for, and the objects in each.

    Attributes:
        images (`Sequence`): `images[i]` is an RGB image; `images.name(i)` is for people, `images.key(i)` for the
            fingerprint.
        objects (`Sequence[Objects]`): one per image; images without objects are data.
        ids (`list[int]`, *optional*): COCO's id of each image, for writing results.
    """

    images: Sequence
    objects: Sequence[Objects]
    ids: Optional[list[int]] = None

    def __len__(self):
        return len(self.images)

    def select(self, indices):
        """The images with these indices, in this order."""
        indices = np.asarray(indices, dtype="int64")
        take = getattr(self.objects, "take", None)
        objects = take(indices) if take else [self.objects[index] for index in indices]
        ids = None if self.ids is None else [self.ids[index] for index in indices]
        return DetectionSplit(Selection(self.images, indices), objects, ids)

    def table(self):
        """The objects of all images as an [`ObjectTable`]."""
        if isinstance(self.objects, ObjectTable):
            return self.objects
        columns = [
            np.concatenate([empty, *(getattr(each, name) for each in self.objects)])
            for name, empty in (("boxes", np.empty((0, 4))), ("labels", []), ("crowd", []), ("areas", []))
        ]
        return ObjectTable(*columns, [len(each.boxes) for each in self.objects])


@dataclasses.dataclass(frozen=True)
class DetectionData:
    """
    What [`load_detection_data`] found.

    Attributes:
        title (`str`): what was asked for.
        train, validation ([`DetectionSplit`]): to learn from, and to validate with; ``None`` without.
        classes (`list[str]`): the name of each class.
        held_out (`str`): where the validation images come from, in words.
        skipped (`list[str]`): images and boxes that were left out, each with the reason.
        understood (`list[str]`): how the data were read, in sentences.
        category_ids (`list[int]`, *optional*): COCO's id of each class, for writing results.
    """

    title: str
    train: DetectionSplit
    validation: Optional[DetectionSplit]
    classes: list[str]
    held_out: str
    skipped: list[str] = dataclasses.field(default_factory=list)
    understood: list[str] = dataclasses.field(default_factory=list)
    category_ids: Optional[list[int]] = None

    def fingerprint(self):
        """What changes when an image comes, goes or changes its part, and when a box or a label changes."""
        digest = hashlib.sha256(repr(self.classes).encode("utf-8", "surrogatepass"))
        splits = [split for split in (self.train, self.validation) if split is not None]
        for split in splits:
            table = split.table()
            digest.update(str(len(split)).encode())
            for index in range(len(split)):
                digest.update(f"{split.images.key(index)}\0".encode("utf-8", "surrogateescape"))
            for values in (table.starts, table.boxes, table.labels, table.crowd, table.areas):
                digest.update(values.tobytes())
        return {
            "images": sum(map(len, splits)),
            "objects": sum(len(split.table().boxes) for split in splits),
            "sha256": digest.hexdigest(),
        }


def hold_out_images(data, fraction, seed):
    """
    Takes a part of the training images, at least one, to validate with, and leaves every class in training.

    Args:
        data ([`DetectionData`]): without a validation part.
        fraction (`float`): of the images, 0…1. Fewer are taken where a class would lose its last training image.
        seed (`int`): decides which.

    Returns:
        [`DetectionData`]: the same where there is one image only.
    """
    total = len(data.train)
    wanted = min(max(1, round(total * fraction)), total - 1)
    if wanted < 1:
        return data
    table = data.train.table()
    learnt = ~table.crowd
    pairs = np.unique(np.stack([table.image_of_each()[learnt], table.labels[learnt]], axis=1), axis=0)
    images_left = np.bincount(pairs[:, 1], minlength=len(data.classes))
    ends = np.searchsorted(pairs[:, 0], np.arange(total + 1))
    order = np.random.RandomState(seed).permutation(total)
    held_out = []
    for index in order:
        labels = pairs[ends[index] : ends[index + 1], 1]
        if (images_left[labels] > 1).all():
            images_left[labels] -= 1
            held_out.append(index)
        if len(held_out) == wanted:
            break
    held_out = np.sort(held_out or order[:1])
    rest = np.setdiff1d(np.arange(total), held_out)
    return dataclasses.replace(
        data,
        train=data.train.select(rest),
        validation=data.train.select(held_out),
        held_out=f"{len(held_out)} of {total} images, drawn with seed {seed}",
    )
