"""COCO's figures of detections, as its own tools compute them (computed by `faster-coco-eval`), and which classes a
detector takes for which."""

import numpy as np

from ..errors import HGNetV2Error
from .boxes import pair


_AREAS = {"all": 0, "small": 1, "medium": 2, "large": 3}  # below 32², 32² to 96², above 96² pixels
_COUNTS = {1: 0, 10: 1, 100: 2}  # detections per image and class
# Figure: precision or recall, IoU (None: the mean of 0.50, 0.55 … 0.95), area, detections.
_FIGURES = {
    "AP": ("precision", None, "all", 100),
    "AP50": ("precision", 0, "all", 100),
    "AP75": ("precision", 5, "all", 100),
    "AP_small": ("precision", None, "small", 100),
    "AP_medium": ("precision", None, "medium", 100),
    "AP_large": ("precision", None, "large", 100),
    "AR_1": ("recall", None, "all", 1),
    "AR_10": ("recall", None, "all", 10),
    "AR_100": ("recall", None, "all", 100),
    "AR_small": ("recall", None, "small", 100),
    "AR_medium": ("recall", None, "medium", 100),
    "AR_large": ("recall", None, "large", 100),
}
_AT_ONCE = 100_000  # detections, as Python objects
_PER_CLASS = ("AP", "AP50", "AR_100")
RECALLS = np.linspace(0, 1, 101)  # where precision is read


def coco_figures(detections, answers, classes):
    """
    Args:
        detections (`list[dict]`): per image `scores` `(n,)`, `labels` `(n,)` and `boxes` `(n, 4)`, arrays or tensors;
            boxes are left, top, right, bottom in pixels, labels positions in `classes`.
        answers (`Sequence`): per image what is there: `boxes` `(m, 4)`, `labels` `(m,)`, `crowd` `(m,)` and `areas`
            `(m,)`, in square pixels, as attributes.
        classes (`list[str]`): the names of the classes.

    Returns:
        `dict`: `AP`, `AP50`, `AP75`, `AP_small`, `AP_medium`, `AP_large`, `AR_1`, `AR_10`, `AR_100`, `AR_small`,
            `AR_medium` and `AR_large`, 0…1, or `None` where there is nothing to find; and `per_class`, which holds
            `AP`, `AP50`, `AR_100` and `boxes` (how many there are to find) of each class.

    Raises:
        `HGNetV2Error`: `faster-coco-eval` is not installed.
    """
    return coco_evaluation(detections, answers, classes)[0]


def coco_evaluation(detections, answers, classes):
    """
    As [`coco_figures`], and the curves.

    Returns:
        `tuple[dict, dict[str, np.ndarray]]`: the figures; and precision, a mean over the classes with objects, at the
            recalls of `RECALLS`: `AP50`, `AP75` and `AP`, `(101,)` each, NaN where there is nothing to find.
    """
    precision, recall = _accumulated(detections, answers, classes)
    figures = {name: _mean(_selected(precision, recall, row)) for name, row in _FIGURES.items()}
    boxes = np.zeros(len(classes), dtype="int64")
    for objects in answers:
        labels = np.asarray(objects.labels, dtype="int64")[~np.asarray(objects.crowd, dtype=bool)]
        boxes += np.bincount(labels, minlength=len(classes))
    figures["per_class"] = {
        name: {
            **{figure: _mean(_selected(precision, recall, _FIGURES[figure])[..., index]) for figure in _PER_CLASS},
            "boxes": int(boxes[index]),
        }
        for index, name in enumerate(classes)
    }
    return figures, {name: _curve(_selected(precision, recall, _FIGURES[name])) for name in ("AP50", "AP75", "AP")}


def detection_confusion(detections, answers, classes, score=0.5, iou=0.5):
    """
    Counts which class is taken for which: detections above a score, paired with objects one to one by [`pair`].

    Args:
        detections, answers, classes: as in [`coco_figures`]; crowds are neither found nor missed.
        score (`float`, defaults to 0.5): only detections above it count.
        iou (`float`, defaults to 0.5): the least overlap of a pair.

    Returns:
        `np.ndarray`: `(classes + 1, classes + 1)`; a row per class that is there, a column per class that is detected.
            The last row counts detections where nothing is, the last column objects that nothing was detected for.
    """
    nothing = len(classes)
    confusion = np.zeros((nothing + 1, nothing + 1), dtype="int64")
    for detected, objects in zip(detections, answers):
        pairs, lone, missed = pair(detected, objects, score, iou)
        labels, true = np.asarray(detected["labels"]), np.asarray(objects.labels)
        np.add.at(confusion, (true[pairs[:, 1]], labels[pairs[:, 0]]), 1)
        np.add.at(confusion, (nothing, labels[lone]), 1)
        np.add.at(confusion, (true[missed], nothing), 1)
    return confusion


def require_coco_tools():
    """
    Returns:
        `tuple[type, type]`: the library's `COCO` and `COCOeval_faster`.

    Raises:
        `HGNetV2Error`: it is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise HGNetV2Error('COCO\'s figures need faster-coco-eval: pip install "hgnetv2-hf[detection]".') from error
    return COCO, COCOeval_faster


def _accumulated(detections, answers, classes):
    """Precision (10 IoUs, 101 recalls, classes, 4 areas, 3 counts) and recall (10, classes, 4, 3); -1: nothing to
    find. A class does not depend on another, so they are computed in groups, in less memory."""
    tools = require_coco_tools()
    shape = (len(classes), len(_AREAS), len(_COUNTS))
    precision, recall = np.full((10, len(RECALLS), *shape), -1.0), np.full((10, *shape), -1.0)
    answers, detections = (
        _flat(answers, ("labels", "boxes", "crowd", "areas"), getattr),
        _flat(detections, ("labels", "boxes", "scores"), dict.get),
    )
    if not answers["images"]:
        return precision, recall
    counts = np.bincount(detections["labels"], minlength=len(classes))
    for group in _groups(counts, _AT_ONCE):
        found = _run(*tools, answers, detections, group)
        precision[:, :, group] = found["precision"]
        recall[:, group] = found["recall"]
    return precision, recall


def _flat(rows, names, get):
    """The arrays of all images in one, by name, and which image each row is of; `images` counts them."""
    columns = {name: [np.asarray(get(each, name)) for each in rows] for name in names}
    lengths = [len(each) for each in columns["labels"]]
    empty = {"labels": np.zeros(0, dtype="int64"), "boxes": np.zeros((0, 4))}
    flat = {name: np.concatenate([empty.get(name, np.zeros(0)), *each]) for name, each in columns.items()}
    return {**flat, "image": np.repeat(np.arange(len(lengths)), lengths), "images": len(lengths)}


def _groups(counts, limit):
    """Consecutive classes with at most so many detections together, or one class with more."""
    group, total = [], 0
    for label, count in enumerate(counts.tolist()):
        if group and total + count > limit:
            yield group
            group, total = [], 0
        group.append(label)
        total += count
    if group:
        yield group


def _run(coco, evaluation, answers, detections, group):
    """What the COCO tools accumulate for some classes."""
    common = {
        "images": [{"id": index} for index in range(answers["images"])],
        "categories": [{"id": label} for label in group],
    }
    truth, found = coco(print_function=_silent), coco(print_function=_silent)
    truth.dataset = {**common, "annotations": _annotations(answers, group, {"area": "areas", "iscrowd": "crowd"})}
    found.dataset = {**common, "annotations": _annotations(detections, group, {"score": "scores"})}
    truth.createIndex()
    found.createIndex()
    run = evaluation(truth, found, "bbox", print_function=_silent)
    run.evaluate()
    run.accumulate()
    return run.eval


def _silent(*_):
    pass


def _annotations(flat, group, columns):
    """COCO's rows of some classes, image by image; number 0 would mean unmatched."""
    rows = np.flatnonzero(np.isin(flat["labels"], group))
    images, labels = flat["image"][rows].tolist(), flat["labels"][rows].tolist()
    boxes = corner_and_sides(flat["boxes"][rows])
    annotations = [
        {"id": number, "image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for number, (image, label, box) in enumerate(zip(images, labels, boxes), 1)
    ]
    for name, column in columns.items():
        kind = int if name == "iscrowd" else "float64"
        for annotation, value in zip(annotations, flat[column][rows].astype(kind).tolist()):
            annotation[name] = value
    return annotations


def corner_and_sides(boxes):
    """Left, top, right, bottom to COCO's left, top, width, height: a list of lists of float."""
    boxes = np.asarray(boxes, dtype="float64").reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()


def _selected(precision, recall, row):
    """The values that a figure is the mean of, classes last."""
    kind, iou, area, count = row
    values = (precision if kind == "precision" else recall)[..., _AREAS[area], _COUNTS[count]]
    return values if iou is None else values[iou : iou + 1]


def _mean(values):
    values = values[values > -1]
    return float(values.mean()) if values.size else None


def _curve(values):
    """Precision at each recall: the mean over IoUs and over the classes that have objects."""
    known = values > -1
    total = np.where(known, values, 0).sum((0, 2))
    return np.divide(total, known.sum((0, 2)), out=np.full(len(RECALLS), np.nan), where=known.any((0, 2)))
