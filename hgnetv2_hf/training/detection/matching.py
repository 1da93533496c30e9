"""Which query stands for which object: assignments of least cost, and their union over the layers.

Source: D-FINE ``src/zoo/dfine/matcher.py`` and ``dfine_criterion.py`` (``_get_go_indices``).
"""

from typing import NamedTuple

import torch

from ...errors import TrainingError
from .boxes import overlaps, to_corners


class Costs(NamedTuple):
    """What a pair of query and object costs; the originals' defaults."""

    class_error: float = 2.0
    box_distance: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25  # of the focal cost
    gamma: float = 2.0


COSTS = Costs()


@torch.no_grad()
def match(logits, boxes, targets, costs=COSTS):
    """
    Args:
        logits (`torch.Tensor`): `(heads, images, queries, classes)`, before the sigmoid.
        boxes (`torch.Tensor`): `(heads, images, queries, 4)`, centre and size in 0…1.
        targets (`list[dict]`): of each image, `labels` `(n,)` and `boxes` `(n, 4)`.
        costs ([`Costs`])

    Returns:
        `list[list[tuple]]`: of each head and image, the queries and the objects that belong together, `int64` on the
        CPU.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise TrainingError('Detectors are trained with scipy: pip install "hgnetv2-hf[detection]".') from error
    nothing = torch.zeros(0, dtype=torch.int64)
    found = [[] for _ in logits]
    for image, target in enumerate(targets):
        if not len(target["labels"]):
            for assignments in found:
                assignments.append((nothing, nothing))
            continue
        costs_of_heads = _pair_costs(logits[:, image], boxes[:, image], target, costs).cpu().numpy()
        for assignments, matrix in zip(found, costs_of_heads):
            queries, objects = linear_sum_assignment(matrix)
            assignments.append((torch.from_numpy(queries).long(), torch.from_numpy(objects).long()))
    return found


def _pair_costs(logits, boxes, target, costs):
    """`(heads, queries, objects)` of one image."""
    score = logits.sigmoid()[..., target["labels"]]
    answers = target["boxes"].to(boxes.dtype)
    as_something = costs.alpha * (1 - score) ** costs.gamma * -(score + 1e-8).log()
    as_nothing = (1 - costs.alpha) * score**costs.gamma * -(1 - score + 1e-8).log()
    distance = torch.cdist(boxes, answers, p=1)
    _, giou = overlaps(to_corners(boxes)[..., :, None, :], to_corners(answers)[None, None])
    total = costs.box_distance * distance + costs.class_error * (as_something - as_nothing) - costs.giou * giou
    return torch.nan_to_num(total, nan=1.0)


def union(assignments):
    """
    For each image, the pairs of all heads: of a query with several objects, the one that most heads gave it.

    Args:
        assignments (`list[list[tuple]]`): of each head and image, what [`match`] returns; the last layer first.

    Returns:
        `list[tuple]`: of each image, queries and objects.
    """
    result = []
    for of_image in zip(*assignments):
        pairs = torch.cat([torch.stack(pair, 1) for pair in of_image])
        different, counts = torch.unique(pairs, return_counts=True, dim=0)
        # The original's own call, which is not stable: equal counts have to come out in the same order.
        by_frequency = different[torch.argsort(counts, descending=True)]
        object_of = {}
        for query, object_index in by_frequency.tolist():
            object_of.setdefault(query, object_index)
        result.append(
            (
                torch.tensor(list(object_of), dtype=torch.int64),
                torch.tensor(list(object_of.values()), dtype=torch.int64),
            )
        )
    return result


class Pairs(NamedTuple):
    """The assignments of all images of a batch as one index."""

    images: torch.Tensor  # (n,)
    queries: torch.Tensor  # (n,)
    labels: torch.Tensor  # (n,), of the objects
    boxes: torch.Tensor  # (n, 4), of the objects, centre and size

    def __len__(self):
        return len(self.images)

    def of(self, values):
        """The rows of `(images, queries, …)` that belong to objects, `(n, …)`."""
        return values[self.images, self.queries]


def gather(assignments, targets, like):
    """[`Pairs`] of one head's assignments, on the device and of the type of the boxes ``like``."""
    device = like.device
    images = torch.cat([torch.full_like(queries, index) for index, (queries, _) in enumerate(assignments)])
    queries = torch.cat([queries for queries, _ in assignments])
    objects = [pair[1].to(device) for pair in assignments]
    return Pairs(
        images.to(device),
        queries.to(device),
        torch.cat([target["labels"][index] for target, index in zip(targets, objects)]).long(),
        torch.cat([target["boxes"][index] for target, index in zip(targets, objects)]).to(like.dtype),
    )
