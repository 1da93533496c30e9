"""Contrastive denoising: queries made from true objects by noise, which the decoder learns to undo.

Source: D-FINE and RT-DETR ``denoising.py``. Boxes that the noise turned inside out keep their size in D-FINE; in
RT-DETR they have none.
"""

import torch

from .boxes import to_centres, to_corners


EPSILON = 1e-5  # of the inverse of the sigmoid, in all originals


def inverse_sigmoid(value):
    value = value.clip(min=0, max=1)
    return torch.log(value.clip(min=EPSILON) / (1 - value).clip(min=EPSILON))


def make_denoising(
    targets, num_classes, num_queries, num_denoising=100, label_noise_ratio=0.5, box_noise_scale=1.0, keeps_size=True,
):  # fmt: skip
    """
    Args:
        targets (`list[dict]`): of each image, `labels` `(n,)` and `boxes` `(n, 4)`, centre and size in 0…1.
        num_classes (`int`): also the label of queries that only fill a place.
        num_queries (`int`): ordinary ones.
        num_denoising (`int`, defaults to 100): how many denoising ones an image with most objects gets, half of them.
        label_noise_ratio (`float`, defaults to 0.5): twice the share of labels that are replaced.
        box_noise_scale (`float`, defaults to 1.0): 1 moves an edge by at most half the box, and by more in a negative.
        keeps_size (`bool`, defaults to `True`): D-FINE's way with boxes that the noise turned inside out.

    Returns:
        `dict`: `labels` `(images, n)`, `boxes_unact` `(images, n, 4)` before the sigmoid, `attn_mask`
        `(n + num_queries, n + num_queries)` (`True`: may not look), `positive_idx` (of each image, the queries that
        stand for objects), `num_group`, `num_split`. Without objects there are no queries, or ``None`` in RT-DETR.
    """
    counts = [len(target["labels"]) for target in targets]
    most = max(counts, default=0)
    if num_denoising <= 0 or (most == 0 and not keeps_size):
        return None
    device, groups = targets[0]["boxes"].device, max(1, num_denoising // most) if most else 0
    labels = torch.full((len(targets), most), num_classes, dtype=torch.int64, device=device)
    boxes = torch.zeros(len(targets), most, 4, device=device)
    for index, target in enumerate(targets):
        labels[index, : counts[index]] = target["labels"]
        boxes[index, : counts[index]] = target["boxes"].to(boxes.dtype)
    is_object = torch.arange(most, device=device)[None] < torch.tensor(counts, device=device)[:, None]
    labels, is_object = (each.tile(1, 2 * groups) for each in (labels, is_object))
    boxes = boxes.tile(1, 2 * groups, 1)
    is_negative = (torch.arange(2 * most * groups, device=device) // max(most, 1) % 2).bool()
    positive = [(is_object[index] & ~is_negative).nonzero()[:, 0] for index in range(len(targets))]

    replaced = (torch.rand(labels.shape, device=device) < label_noise_ratio * 0.5) & is_object
    labels = torch.where(replaced, torch.randint_like(labels, 0, num_classes), labels)
    if box_noise_scale > 0:
        sign = torch.randint_like(boxes, 0, 2) * 2 - 1
        part = torch.rand_like(boxes) + is_negative[None, :, None]
        reach = boxes[..., 2:].tile(1, 1, 2) * 0.5 * box_noise_scale
        boxes = to_centres((to_corners(boxes) + sign * part * reach).clip(0, 1))
        if keeps_size:
            boxes = boxes.abs()
    return {
        "labels": labels,
        "boxes_unact": inverse_sigmoid(boxes),
        "attn_mask": _attention_mask(2 * most, groups, num_queries, device),
        "positive_idx": positive,
        "num_group": groups,
        "num_split": [2 * most * groups, num_queries],
    }


def _attention_mask(per_group, groups, num_queries, device):
    """`True` where a query may not look: ordinary ones at denoising ones, and denoising ones at other groups."""
    total = per_group * groups
    group = torch.arange(total + num_queries, device=device) // max(per_group, 1)
    group[total:] = -1  # ordinary
    return (group[None] != -1) & (group[None] != group[:, None])
