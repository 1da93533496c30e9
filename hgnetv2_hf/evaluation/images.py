"""Which images are evaluated on: a part of data, or some of it, with the answers."""

import dataclasses
from collections.abc import Sequence
from typing import Optional

import numpy as np

from ..errors import HGNetV2Error


PARTS = ("validation", "train", "all")


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """The images to evaluate on, with the answers."""

    title: str
    images: Sequence
    answers: Sequence  # the index of each one's class, or its objects
    classes: list[str]
    ids: Optional[list[int]]  # of the images and of the classes, where they are COCO's
    category_ids: Optional[list[int]]

    def __len__(self):
        return len(self.images)

    def used(self):
        """The positions of the classes that images or boxes belong to."""
        if len(self) and hasattr(self.answers[0], "labels"):
            return {label for objects in self.answers for label in np.unique(objects.labels).tolist()}
        return set(self.answers)


def choose_images(data, part, limit):
    """
    Args:
        data (`Data` or `DetectionData`): `title`, `train`, `validation` and `classes`.
        part (`"validation"`, `"train"` or `"all"`)
        limit (`int` or `None`): so many images only, evenly spread.

    Returns:
        [`LabelledImages`]

    Raises:
        `HGNetV2Error`: there are none.
    """
    if part == "validation" and data.validation is None:
        raise HGNetV2Error(
            f"{data.title} has no validation part; pass --part train or all, or --validation-fraction with the value "
            "that a training held out with."
        )
    splits = {"validation": [data.validation], "train": [data.train], "all": [data.train, data.validation]}[part]
    splits = [split for split in splits if split is not None]
    total = sum(map(len, splits))
    if not total:
        raise HGNetV2Error(f"{data.title} holds no image in this part ({part}).")
    if limit is not None and limit < total:
        chosen = np.linspace(0, total - 1, limit).round().astype("int64")
        ends = np.cumsum([0, *map(len, splits)])
        splits = [
            split.select(chosen[(chosen >= start) & (chosen < end)] - start)
            for split, start, end in zip(splits, ends, ends[1:])
        ]
    are_objects = hasattr(splits[0], "objects")
    answers = [split.objects if are_objects else split.labels for split in splits]
    ids = [getattr(split, "ids", None) for split in splits]
    return LabelledImages(
        data.title,
        _joined([split.images for split in splits]),
        _joined(answers),
        data.classes,
        None if None in ids or len(ids) > 1 else ids[0],  # two files may use one number for two images
        getattr(data, "category_ids", None),
    )


def _joined(parts):
    return parts[0] if len(parts) == 1 else _Joined(parts)


class _Joined(Sequence):
    """Sequences one after the other."""

    def __init__(self, parts):
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self):
        return int(self.ends[-1])

    def __getitem__(self, index):
        part, index = self._place(index)
        return part[index]

    def name(self, index):
        part, index = self._place(index)
        return part.name(index)

    def _place(self, index):
        index = range(len(self))[index]  # an IndexError where there is none
        number = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[number], index - (int(self.ends[number - 1]) if number else 0)
