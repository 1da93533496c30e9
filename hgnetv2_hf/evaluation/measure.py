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
from .pictures import MISTAKES, THUMBNAIL, draw_classifier, draw_detector


_ANOTHER = "(another class)"


@dataclasses.dataclass
class Measured:
    """A model's figures, and what its files are written from."""

    metrics: dict
    names: list[str]  # of the rows of the confusion matrix, without a detector's row for nothing
    confusion: np.ndarray
    rows: list[dict]  # of results.csv
    draw: Callable  # writes the page: a path and a title
    notes: list[str]
    detections: Optional[dict[int, dict]] = None


def measure_classifier(common, images, positions, answered, threshold):
    indices = sorted(answered)
    best = np.stack([answered[index][0] for index in indices])
    scores = np.array([answered[index][1] for index in indices])
    labels = np.array([images.answers[index] for index in indices], dtype="int64")
    right = best[:, 0] == positions[labels]
    rows = reliability(scores, right)
    to_data = {position: label for label, position in enumerate(positions.tolist()) if position >= 0}
    names = list(images.classes)
    answers = np.array([to_data.get(answer, len(names)) for answer in best[:, 0].tolist()], dtype="int64")
    if (answers == len(names)).any():
        names.append(_ANOTHER)
    confusion = confusion_matrix(answers, labels, len(names))
    metrics = {
        **common,
        **accuracies(best, positions[labels]),
        "ece": expected_calibration_error(rows),
        "reliability": rows,
        "per_class": per_class(confusion[: len(images.classes)], images.classes),
    }
    table = [
        {
            "index": index,
            "image": images.images.name(index),
            "class": images.classes[label],
            "answer": names[answer],
            "score": float(f"{score:.6g}"),
            "right": int(is_right),
            "error": "",
        }
        for index, label, answer, score, is_right in zip(indices, labels, answers, scores.tolist(), right)
    ]
    wrong = sorted((row for row in table if not row["right"]), key=lambda row: -row["score"])[:MISTAKES]

    def draw(path, title):
        mistakes = [
            (
                _thumbnail(images.images[row["index"]])[0],
                f"{printable(row['class'])[:30]} → {printable(row['answer'])[:30]} {row['score']:.2f}",
            )
            for row in wrong
        ]
        draw_classifier(path, title, confusion, list(map(printable, names)), rows, mistakes)

    chance = close_to_chance(metrics["accuracy"], np.bincount(labels, minlength=len(images.classes)).tolist())
    return Measured(metrics, names, confusion, table, draw, [f"{chance}."] if chance else [])


def measure_detector(common, images, positions, answered, threshold):
    indices = sorted(answered)
    to_data = np.full(max(positions.max(initial=-1) + 1, 1 + _largest_label(answered)), -1, dtype="int64")
    for label, position in enumerate(positions.tolist()):
        if position >= 0:
            to_data[position] = label
    detections, ignored = {}, 0
    for index in indices:
        labels = to_data[answered[index]["labels"]]
        known = labels >= 0
        ignored += int((~known & (answered[index]["scores"] > threshold)).sum())
        kept = {name: array[known] for name, array in answered[index].items()}
        detections[index] = {**kept, "labels": labels[known]}
    found, answers = list(detections.values()), [images.answers[index] for index in indices]
    figures, curves = coco_evaluation(found, answers, images.classes)
    confusion = detection_confusion(found, answers, images.classes, threshold)
    metrics = {**common, **figures, "threshold": threshold}
    table = [
        {"index": index, "image": images.images.name(index), **_counts(each, objects, threshold), "error": ""}
        for index, each, objects in zip(indices, found, answers)
    ]
    worst = sorted((row for row in table if row["missed"] + row["extra"]), key=_share_right)[:MISTAKES]

    def draw(path, title):
        mistakes = [_drawn(row, images, detections[row["index"]], threshold) for row in worst]
        draw_detector(path, title, confusion, list(map(printable, images.classes)), curves, mistakes)

    lacking = len(to_data) - int((to_data >= 0).sum())
    notes = []
    if ignored:
        notes.append(
            f"{counted(ignored, 'detection')} above {threshold:g} of classes that {images.title} lacks "
            f"({lacking} of the model's) left out, as COCO's tools do"
        )
    return Measured(metrics, [*images.classes, "(nothing)"], confusion, table, draw, notes, detections)


def _largest_label(answered):
    return max((int(each["labels"].max()) for each in answered.values() if each["labels"].size), default=-1)


def _counts(detected, objects, threshold):
    """The columns of an image's row; an object is found by a detection of its class."""
    pairs, lone, missed = pair(detected, objects, threshold)
    same = detected["labels"][pairs[:, 0]] == np.asarray(objects.labels)[pairs[:, 1]]
    wrong = np.concatenate([pairs[~same, 0], lone])
    return {
        "objects": len(pairs) + len(missed),
        "found": int(same.sum()),
        "missed": len(missed) + int((~same).sum()),
        "extra": len(wrong),
        "worst_score": float(f"{detected['scores'][wrong].max():.6g}") if len(wrong) else "",
    }


def _share_right(row):
    """F1 of an image; of equal ones the one with the surest mistake comes first."""
    return 2 * row["found"] / (2 * row["found"] + row["missed"] + row["extra"]), -(row["worst_score"] or 0)


def _thumbnail(image):
    """A smaller copy, and how much smaller."""
    scale = min(1.0, THUMBNAIL / max(image.size))
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return (image if scale == 1 else image.resize(size)), scale


def _drawn(row, images, detected, threshold):
    thumbnail, scale = _thumbnail(images.images[row["index"]])
    objects, names = images.answers[row["index"]], list(map(printable, images.classes))
    boxes = [
        (box * scale, names[label] + (" (crowd)" if crowd else ""), True)
        for box, label, crowd in zip(np.asarray(objects.boxes), objects.labels, objects.crowd)
    ]
    boxes += [
        (box * scale, f"{names[label]} {score:.2f}", False)
        for box, label, score in zip(detected["boxes"], detected["labels"], detected["scores"])
        if score > threshold
    ]
    return thumbnail, f"{row['found']} found, {row['missed']} missed, {row['extra']} extra", boxes
