"""The classes of data among the labels of a model: by name, never by position."""

import re
from collections import Counter

import numpy as np

from ..errors import HGNetV2Error
from ..wording import counted


_WORDNET_ID = re.compile(r"n\d{8}")
_IMAGENET_ENDS = ("tench", "toilet t")  # how the first and the last of ImageNet-1k's labels begin
# Six of COCO's classes have another name in the labels of RT-DETR's and other detectors on the Hub.
_COCO_NAMES = {
    "motorcycle": "motorbike",
    "airplane": "aeroplane",
    "couch": "sofa",
    "potted plant": "pottedplant",
    "dining table": "diningtable",
    "tv": "tvmonitor",
}
_OTHER_NAMES = {**_COCO_NAMES, **{other: name for name, other in _COCO_NAMES.items()}}


def match_labels(classes, labels, used, title):
    """
    Args:
        classes (`list[str]`): of the data.
        labels (`list[str]`): of the model.
        used (`set[int]`): the positions of the classes that images or boxes belong to.
        title (`str`): how the data are called.

    Returns:
        `tuple[np.ndarray, list[str]]`: per class its position in the model's labels, -1 where the model does not know
            it and nothing belongs to it; and sentences on what is not matched by the same name.

    Raises:
        `HGNetV2Error`: the model does not know a class, or has two labels of its name.
    """
    if _are_imagenet_folders(classes, labels):
        order = {name: position for position, name in enumerate(sorted(classes))}
        note = "the folders are named by WordNet ids: their order is ImageNet's order of labels"
        return np.array([order[name] for name in classes], dtype="int64"), [note]
    count, place = Counter(labels), {name: position for position, name in enumerate(labels)}
    names = [name if name in place else _OTHER_NAMES.get(name, name) for name in classes]
    twice = [name for index, name in enumerate(names) if index in used and count[name] > 1]
    if twice:
        raise HGNetV2Error(f"The model has {count[twice[0]]} labels {twice[0]}; nobody can say which {title} means.")
    positions = np.array([place.get(name, -1) for name in names], dtype="int64")
    unknown = [name for index, name in enumerate(classes) if positions[index] < 0]
    if any(classes[index] in unknown for index in used):
        raise HGNetV2Error(_does_not_know([classes[index] for index in sorted(used)], unknown, labels, title))
    renamed = [f"{name} is its {other}" for name, other in zip(classes, names) if name != other and other in place]
    notes = [f"the model names COCO's classes otherwise: {', '.join(renamed)}"] if renamed else []
    if unknown:
        notes.append(f"the model does not know {_some(unknown)}, and nothing belongs to {_it(unknown)}")
    return positions, notes


def _are_imagenet_folders(classes, labels):
    """All of ImageNet-1k's folders, and a model with its labels in their usual order."""
    if not len(classes) == len(labels) == 1000 or not all(map(_WORDNET_ID.fullmatch, classes)):
        return False
    return all(label.startswith(start) for label, start in zip((labels[0], labels[-1]), _IMAGENET_ENDS))


def _does_not_know(used, unknown, labels, title):
    missing = [name for name in used if name in unknown]
    hint = f"it has {_some(labels)}"
    if all(map(_WORDNET_ID.fullmatch, missing)):
        hint = "WordNet ids are matched where all 1000 folders of ImageNet-1k are there and the labels are ImageNet's"
    classes = "this class" if len(missing) == 1 else f"{counted(len(missing), 'class', 'classes')}"
    return f"The model does not know {classes} of {title}: {_some(missing)}; {hint}."


def _it(names):
    return "it" if len(names) == 1 else "them"


def _some(names, limit=5):
    return ", ".join(names[:limit]) + (f" … ({len(names)} in all)" if len(names) > limit else "")
