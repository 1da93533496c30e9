"""Boxes as tensors: centre and size, corners, and how well pairs of them agree."""

import torch


def to_corners(boxes):
    """Centre, width and height to left, top, right and bottom, `(…, 4)`; a negative size counts as none."""
    x, y, width, height = boxes.unbind(-1)
    half_width, half_height = 0.5 * width.clamp(min=0), 0.5 * height.clamp(min=0)
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], -1)


def to_centres(corners):
    """Left, top, right and bottom to centre, width and height, `(…, 4)`."""
    left, top, right, bottom = corners.unbind(-1)
    return torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], -1)


def _areas(corners):
    return (corners[..., 2] - corners[..., 0]) * (corners[..., 3] - corners[..., 1])


def overlaps(first, second):
    """
    Intersection over union, plain and generalised (Rezatofighi et al. 2019).

    Args:
        first, second (`torch.Tensor`): corners, `(…, 4)`; their leading dimensions broadcast, so that equal ones give
            pairs and `(n, 1, 4)` with `(1, m, 4)` gives every combination.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: IoU in 0…1 and GIoU in -1…1; not a number where both boxes are points.
    """

    def area_between(low, high):
        size = (high - low).clamp(min=0)
        return size[..., 0] * size[..., 1]

    shared = area_between(
        torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    )
    union = _areas(first) + _areas(second) - shared
    around = area_between(
        torch.minimum(first[..., :2], second[..., :2]), torch.maximum(first[..., 2:], second[..., 2:])
    )
    iou = shared / union
    return iou, iou - (around - union) / around
