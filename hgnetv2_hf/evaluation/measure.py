"""From answers to figures, to a row per image, to what is drawn: of a classifier, of a detector."""

import dataclasses
from collections.abc import Callable
from typing import Optional

import numpy as np

from ..wording import counted, printable
from .accuracy import accuracies, close_to_chance, per_class
from .boxes import pair
from .calibration import expected_calibration_error, reliability
from .coco import coco_evaluation, detection_confusion
from .confusion import confusion_matrix
from .pictures import MISTAKES, NOTHING, THUMBNAIL, draw_classifier, draw_detector


_ANOTHER = "(another class)"


@dataclasses.dataclass
class Measured:
    """A model's figures, and what its files are written from."""

    metrics: dict
    names: list[str]  # of the rows of the confusion matrix
    confusion: np.ndarray
    rows: list[dict]  # of results.csv
    draw: Callable  # writes the page: a path and a title
    notes: list[str]
    detections: Optional[dict[int, dict]] = None


def measure_classifier(common, images, positions, answered, threshold=None):
    """
    Args:
        common (`dict`): metrics that are known already.
        images ([`LabelledImages`])
        positions (`np.ndarray`): `(classes,)`, the model's label of each class of the data; see [`match_labels`].
        answered (`dict[int, tuple]`): by the index of the image, the model's best labels, best first, and the
            probability of the first; images that cannot be read are missing.

    Returns:
        [`Measured`]
    """
    indices = sorted(answered)
    best = np.stack([answered[index][0] for index in indices])
    scores = np.array([answered[index][1] for index in indices])
    labels = np.array([images.answers[index] for index in indices], dtype="int64")
    to_data = _to_data(positions, best.max())[best[:, 0]]
    names = [*images.classes, _ANOTHER][: len(images.classes) + bool((to_data < 0).any())]
    answers = np.where(to_data < 0, len(images.classes), to_data)
    confusion = confusion_matrix(answers, labels, len(names))
    bins = reliability(scores, answers == labels)
    rows = [
        {
            "index": index,
            "image": images.images.name(index),
            "class": names[label],
            "answer": names[answer],
            "score": float(f"{score:.6g}"),
            "right": int(answer == label),
            "error": "",
        }
        for index, label, answer, score in zip(indices, labels.tolist(), answers.tolist(), scores.tolist())
    ]
    metrics = {
        **common,
        **accuracies(best, positions[labels]),
        "ece": expected_calibration_error(bins),
        "reliability": bins,
        "per_class": per_class(confusion[: len(images.classes)], images.classes),
    }
    chance = close_to_chance(metrics["accuracy"], np.bincount(labels, minlength=len(images.classes)).tolist())

    def draw(path, title):
        wrong = sorted((row for row in rows if not row["right"]), key=lambda row: -row["score"])
        mistakes = [_mistake(row, images) for row in wrong[:MISTAKES]]
        draw_classifier(path, title, confusion, list(map(printable, names)), bins, mistakes)

    return Measured(metrics, names, confusion, rows, draw, [f"{chance}."] if chance else [])


def measure_detector(common, images, positions, answered, threshold=0.5):
    """
    Args:
        common, images, positions: as in [`measure_classifier`].
        answered (`dict[int, dict]`): by the index of the image, `scores`, best first, `labels` and `boxes` in pixels;
            images that cannot be read are missing.
        threshold (`float`, defaults to 0.5): score above which detections count in confusion, rows and pictures.

    Returns:
        [`Measured`]: detections of classes that the data lack are left out, as COCO's tools do.
    """
    indices = sorted(answered)
    answers = [images.answers[index] for index in indices]
    to_data = _to_data(positions, max(_largest_label(each) for each in answered.values()))
    detections = {index: _renumbered(answered[index], to_data) for index in indices}
    found = list(detections.values())
    by_id = indices if images.ids is None else sorted(indices, key=lambda index: images.ids[index])  # decides ties
    figures, curves = coco_evaluation(
        [detections[index] for index in by_id], [images.answers[index] for index in by_id], images.classes
    )
    confusion = detection_confusion(found, answers, images.classes, threshold)
    rows = [
        {"index": index, "image": images.images.name(index), **_counts(each, objects, threshold), "error": ""}
        for index, each, objects in zip(indices, found, answers)
    ]

    def draw(path, title):
        worst = sorted((row for row in rows if row["missed"] + row["extra"]), key=_share_right)
        mistakes = [_objects_of(row, images, detections[row["index"]], threshold) for row in worst[:MISTAKES]]
        draw_detector(path, title, confusion, list(map(printable, images.classes)), curves, mistakes)

    lost = sum(int((each["scores"] > threshold).sum()) for each in answered.values())
    lost -= sum(int((each["scores"] > threshold).sum()) for each in found)
    notes = []
    if lost:
        notes.append(
            f"{counted(lost, 'detection')} above {threshold:g} of classes that {images.title} lacks: left out, as "
            "COCO's tools do"
        )
    metrics = {**common, **figures, "threshold": threshold}
    return Measured(metrics, [*images.classes, NOTHING], confusion, rows, draw, notes, detections)


def _to_data(positions, largest):
    """The class of the data of each label of the model, -1 where the data lack it."""
    to_data = np.full(max(int(positions.max(initial=-1)), int(largest)) + 1, -1, dtype="int64")
    known = np.flatnonzero(positions >= 0)
    to_data[positions[known]] = known
    return to_data


def _largest_label(detected):
    return int(detected["labels"].max(initial=-1))


def _renumbered(detected, to_data):
    labels = to_data[detected["labels"]]
    return {
        "scores": detected["scores"][labels >= 0],
        "labels": labels[labels >= 0],
        "boxes": detected["boxes"][labels >= 0],
    }


def _outcome(detected, objects, threshold):
    """The objects that a detection of their class found, the wrong detections, and how many objects there are."""
    pairs, lone, missed = pair(detected, objects, threshold)
    same = detected["labels"][pairs[:, 0]] == np.asarray(objects.labels)[pairs[:, 1]]
    return pairs[same, 1], np.concatenate([pairs[~same, 0], lone]), len(pairs) + len(missed)


def _counts(detected, objects, threshold):
    """The columns of an image's row."""
    found, wrong, total = _outcome(detected, objects, threshold)
    return {
        "objects": total,
        "found": len(found),
        "missed": total - len(found),
        "extra": len(wrong),
        "worst_score": float(f"{detected['scores'][wrong].max():.6g}") if len(wrong) else "",
    }


def _share_right(row):
    """F1 of an image; of equal ones the one with the surest mistake comes first."""
    return 2 * row["found"] / (2 * row["found"] + row["missed"] + row["extra"]), -(row["worst_score"] or 0)


def _mistake(row, images):
    text = f"{printable(row['class'])[:30]} → {printable(row['answer'])[:30]} {row['score']:.2f}"
    return _thumbnail(images.images[row["index"]])[0], text


def _thumbnail(image):
    """A smaller copy, and how much smaller."""
    scale = min(1.0, THUMBNAIL / max(image.size))
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return (image if scale == 1 else image.resize(size)), scale


def _objects_of(row, images, detected, threshold):
    """The image, its counts, and the boxes in it: see [`draw_detector`]."""
    thumbnail, scale = _thumbnail(images.images[row["index"]])
    objects, names = images.answers[row["index"]], list(map(printable, images.classes))
    found, wrong, _ = _outcome(detected, objects, threshold)
    kinds = np.where(np.asarray(objects.crowd, dtype=bool), "crowd", "missed").astype(object)
    kinds[found] = "found"
    boxes = [
        (box * scale, names[label], kind) for box, label, kind in zip(np.asarray(objects.boxes), objects.labels, kinds)
    ]
    boxes += [
        (
            detected["boxes"][index] * scale,
            f"{names[detected['labels'][index]]} {detected['scores'][index]:.2f}",
            "wrong",
        )
        for index in wrong
    ]
    return thumbnail, f"{row['found']} found, {row['missed']} missed, {row['extra']} extra", boxes
