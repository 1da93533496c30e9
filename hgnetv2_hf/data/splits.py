"""The parts of a data set: images with labels, what is held out of them, which classes are kept."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Optional

import numpy as np

from ..errors import DataError
from .checking import check_classes
from .streams import Stream


VALIDATION_NAMES = ("val", "validation", "valid", "test", "testing")  # the first that is there counts


@dataclasses.dataclass(frozen=True)
class Split:
    """Images, decoded when they are asked for, and the index of each one's class; ``None`` without labels."""

    images: Sequence  # with `name(index)` for people and `key(index)` for the fingerprint
    labels: Optional[list[int]]

    def __len__(self):
        return len(self.images)

    def renumbered(self, order):
        """The same images; class `i` becomes ``order[i]``."""
        return self if self.labels is None else Split(self.images, [order[label] for label in self.labels])

    def select(self, indices):
        labels = None if self.labels is None else [self.labels[index] for index in indices]
        return Split(Selection(self.images, indices), labels)


class Selection(Sequence):
    """Some of the items of a sequence, by index; images keep their `name` and `key`."""

    def __init__(self, images, indices):
        self.images, self.indices = images, np.asarray(indices, dtype="int64")

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        return self.images[self.indices[index]]

    def name(self, index):
        return self.images.name(self.indices[index])

    def key(self, index):
        return self.images.key(self.indices[index])


@dataclasses.dataclass(frozen=True)
class Data:
    """What [`load_data`] found: a [`Split`] or a [`Stream`] to learn from, and one to validate with."""

    title: str
    train: Split | Stream
    validation: Optional[Split | Stream]
    classes: Optional[list[str]]  # the name of each class; None without labels
    held_out: str  # where the validation images come from, in words
    skipped: list[str] = dataclasses.field(default_factory=list)  # images that cannot be read, each with the reason
    understood: list[str] = dataclasses.field(default_factory=list)  # how a folder was read, in sentences

    def fingerprint(self):
        """What changes when an image comes, goes, or changes its class or its part; a stream is not known before it is
        read."""
        splits = [split for split in (self.train, self.validation) if isinstance(split, Split)]
        digest = hashlib.sha256(repr(self.classes).encode())
        for split in splits:
            digest.update(str(len(split)).encode())
            for index in range(len(split)):
                label = None if split.labels is None else split.labels[index]
                digest.update(f"{split.images.key(index)}\0{label}\0".encode("utf-8", "surrogateescape"))
        return {"images": sum(map(len, splits)), "sha256": digest.hexdigest()}

    def renumbered(self, classes):
        """The same data, its labels in the order of ``classes``.

        Raises:
            `DataError`: a class of the data is not among them.
        """
        if self.classes is None or self.classes == classes:
            return self
        unknown = [name for name in self.classes if name not in classes]
        if unknown:
            raise DataError(f"The model does not know these classes of {self.title}: {', '.join(unknown[:5])}.")
        order = [classes.index(name) for name in self.classes]
        train, validation = (
            None if split is None else split.renumbered(order) for split in (self.train, self.validation)
        )
        return dataclasses.replace(self, train=train, validation=validation, classes=classes)


def hold_out(data, fraction, seed):
    """Takes the same part of every class, at least one image of each that has two, out of the training images."""
    generator = np.random.RandomState(seed)
    labels = np.zeros(len(data.train), dtype="int64") if data.train.labels is None else np.array(data.train.labels)
    held_out = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(len(members) * fraction)), len(members) - 1)
        held_out += members[:count].tolist()
    if not held_out:  # one image per class
        return data
    held_out = sorted(held_out)
    rest = sorted(set(range(len(data.train))) - set(held_out))
    return dataclasses.replace(
        data,
        train=data.train.select(rest),
        validation=data.train.select(held_out),
        held_out=f"{fraction:.0%} of each class, seed {seed}",
    )


def only_classes(data, names, per_class=None):
    """
    Args:
        data ([`Data`]): no stream, with classes.
        names (`list[str]`): the classes to keep, in this order.
        per_class (`int`, *optional*): keep the first so many training images of each.

    Returns:
        [`Data`]

    Raises:
        `DataError`: there is no such class, or a class would be left without an image.
    """
    unknown = [name for name in names if name not in data.classes]
    if unknown:
        raise DataError(f"{data.title} has no class {', '.join(unknown)}; it has {', '.join(data.classes[:20])}.")
    new = {data.classes.index(name): position for position, name in enumerate(names)}

    def keep(split, limit):
        seen, indices = Counter(), []
        for index, label in enumerate(split.labels):
            if label in new and (limit is None or seen[label] < limit):
                seen[label] += 1
                indices.append(index)
        kept = split.select(indices)
        return dataclasses.replace(kept, labels=[new[label] for label in kept.labels])

    kept = dataclasses.replace(
        data,
        train=keep(data.train, per_class),
        validation=None if data.validation is None else keep(data.validation, None),
        classes=list(names),
    )
    check_classes(kept)
    return kept
