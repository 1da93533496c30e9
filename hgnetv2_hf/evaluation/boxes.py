"""From a detector's outputs to boxes in pixels, and from boxes to pairs: which detection found which object."""

import numpy as np
import torch


def best_boxes(logits, boxes, sizes, count=300):
    """
    The surest detections of each image, as the post-processor of RT-DETR and D-FINE (`use_focal_loss`) chooses them: a
    query may be chosen for several classes.

    Args:
        logits (`torch.Tensor`): `(images, queries, classes)`, before the sigmoid.
        boxes (`torch.Tensor`): `(images, queries, 4)`, centre x, centre y, width, height, 0…1 of the image.
        sizes (`torch.Tensor` or `list[tuple[int, int]]`): `(images, 2)`, height and width in pixels.
        count (`int`, defaults to 300): detections per image, or all where queries × classes are fewer.

    Returns:
        `list[dict[str, torch.Tensor]]`: per image `scores` `(count,)`, best first, `labels` `(count,)` int64 and
            `boxes` `(count, 4)`, left, top, right, bottom in pixels, not cut at the image's border.
    """
    found = surest_boxes(logits, boxes, torch.as_tensor(sizes), count)
    return [dict(zip(("scores", "labels", "boxes"), each)) for each in zip(*found)]


def surest_boxes(logits, boxes, sizes, count):
    """What [`best_boxes`] gives, as three tensors: scores and labels `(images, count)`, boxes `(images, count, 4)`."""
    heights, widths = sizes.to(boxes).unbind(1)
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    corners = torch.cat([centre - half, centre + half], -1)
    corners = corners * torch.stack([widths, heights, widths, heights], 1)[:, None]
    scores = logits.sigmoid().flatten(1)
    scores, index = scores.topk(min(count, scores.shape[1]))
    queries, labels = index // logits.shape[2], index % logits.shape[2]
    return scores, labels, corners.gather(1, queries[..., None].expand(-1, -1, 4))


def overlaps(boxes, others, crowd=None):
    """
    Intersection over union.

    Args:
        boxes, others (`np.ndarray`): `(n, 4)` and `(m, 4)`, left, top, right, bottom.
        crowd (`np.ndarray`, *optional*): `(m,)`, which of the others are regions full of objects: there the
            intersection counts over the area of the box alone, as in the COCO tools.

    Returns:
        `np.ndarray`: `(n, m)` float64.
    """
    boxes, others = (np.asarray(each, dtype="float64").reshape(-1, 4) for each in (boxes, others))
    corner = np.maximum(boxes[:, None, :2], others[None, :, :2])
    sides = np.minimum(boxes[:, None, 2:], others[None, :, 2:]) - corner
    shared = np.prod(sides.clip(min=0), -1)
    areas, other_areas = (np.prod((each[:, 2:] - each[:, :2]).clip(min=0), -1) for each in (boxes, others))
    union = areas[:, None] + other_areas[None] - shared
    if crowd is not None:
        union = np.where(np.asarray(crowd, dtype=bool)[None], areas[:, None], union)
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def pair(detections, objects, score=0.5, iou=0.5):
    """
    Pairs the detections of one image with its objects, one to one.

    A detection of the object's class comes before one of another class, then the larger overlap, then the surer one.

    Args:
        detections (`dict`): `scores` `(n,)`, `labels` `(n,)`, `boxes` `(n, 4)`.
        objects: `boxes` `(m, 4)`, `labels` `(m,)` and `crowd` `(m,)` as attributes; boxes as left, top, right, bottom.
        score (`float`, defaults to 0.5): only detections above it count.
        iou (`float`, defaults to 0.5): the least overlap.

    Returns:
        `tuple[np.ndarray, np.ndarray, np.ndarray]`: `(pairs, 2)`, the indices of a detection and its object; `(k,)`,
            the detections that have none; `(l,)`, the objects that have none. Objects that are crowds are in neither,
            nor are detections of their class inside them.
    """
    scores, labels, boxes = (np.asarray(detections[name]) for name in ("scores", "labels", "boxes"))
    crowd, classes = np.asarray(objects.crowd, dtype=bool), np.asarray(objects.labels)
    sure = np.flatnonzero(scores > score)
    overlap = overlaps(boxes[sure], objects.boxes, crowd)
    same = labels[sure][:, None] == classes[None]
    rows, columns = np.nonzero((overlap >= iou) & ~crowd[None])
    order = np.lexsort((-scores[sure][rows], -overlap[rows, columns], ~same[rows, columns]))
    found, taken = {}, set()
    for row, column in zip(rows[order].tolist(), columns[order].tolist()):
        if row not in found and column not in taken:
            found[row] = column
            taken.add(column)
    in_crowd = ((overlap >= iou) & same & crowd[None]).any(1)
    pairs = np.array([(sure[row], column) for row, column in found.items()], dtype="int64").reshape(-1, 2)
    lone = [sure[row] for row in range(len(sure)) if row not in found and not in_crowd[row]]
    missed = [column for column in np.flatnonzero(~crowd).tolist() if column not in taken]
    return pairs, np.array(lone, dtype="int64"), np.array(missed, dtype="int64")
