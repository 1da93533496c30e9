"""The originals' criteria: what D-FINE, RT-DETR, RT-DETRv2, DEIM, RT-DETRv4 and DEIMv2 minimise, loss by loss.

Sources: D-FINE ``src/zoo/dfine/dfine_criterion.py`` (commit 4a1f73a), RT-DETR
``rtdetrv2_pytorch/src/zoo/rtdetr/rtdetrv2_criterion.py`` (068dfde), DEIM ``engine/deim/deim_criterion.py`` (09d35d5).
"""

from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F

from ...errors import TrainingError
from .boxes import overlaps, to_corners
from .distribution import edges_to_bins
from .matching import COSTS, Costs, gather, match, union


TEMPERATURE = 5  # of the distributions in DDF


class Family(NamedTuple):
    """What one program minimises."""

    class_loss: str  # "vfl" or "mal"
    alpha: float
    gamma: float
    weights: dict[str, float]
    shares_union: bool  # boxes learn from the union of all layers' assignments
    has_distributions: bool  # FGL and DDF
    nan_is_zero: bool  # a loss that is not a number counts as 0
    teaches_itself: bool  # the last layer has a DDF loss too, which is 0


_BOXES = {"loss_bbox": 5.0, "loss_giou": 2.0}
_DISTRIBUTIONS = {"loss_fgl": 0.15, "loss_ddf": 1.5}
_DFINE = Family("vfl", 0.75, 2.0, {"loss_vfl": 1.0, **_BOXES, **_DISTRIBUTIONS}, True, True, True, True)
_RTDETR = Family("vfl", 0.75, 2.0, {"loss_vfl": 1.0, **_BOXES}, False, False, False, False)
_DEIM = Family("mal", 0.75, 1.5, {"loss_mal": 1.0, **_BOXES, **_DISTRIBUTIONS}, True, True, True, False)

# RT-DETRv4 adds a distillation from a teacher, which is not computed. DEIMv2's small ones have no distributions.
_LITE = Family("mal", 0.75, 1.5, {"loss_mal": 1.0, **_BOXES}, False, False, True, False)

FAMILIES = {
    "dfine": _DFINE,
    "rtdetr": _RTDETR,
    "rtdetrv2": _RTDETR,
    "deim": _DEIM,
    "rtdetrv4": _DEIM,
    "deimv2": _DEIM,
    "deimv2-lite": _LITE,
}
REFINING = ("dfine", "deim", "rtdetrv4", "deimv2", "deimv2-lite")  # whose decoder is D-FINE's, edge by edge


class _Head(NamedTuple):
    """One prediction of the network, and what its losses are called."""

    suffix: str
    outputs: dict
    targets: list[dict]  # the encoder's may know one class only
    assignments: list  # of its classes, of each image
    is_denoising: bool = False


class _Counts(NamedTuple):
    """Objects of a batch, on average over the processes that train together."""

    objects: float
    pairs: float  # of the union
    rest: float  # queries without one
    denoising_pairs: float
    denoising_rest: float


class DetectionCriterion(torch.nn.Module):
    """
    The losses of an original program.

    Args:
        family (`"dfine"`, `"rtdetr"`, `"rtdetrv2"`, `"deim"`, `"rtdetrv4"`, `"deimv2"`; or `"deimv2-lite"`, of its
            Atto, Femto and Pico)
        num_classes (`int`, defaults to 80)
        weights (`dict[str, float]`, *optional*): of each loss (`{"loss_giou": 2.0}`); the original's for the others.
        alpha, gamma (`float`, *optional*): of the classes' loss.
        reg_max (`int`, defaults to 32): bins of an edge less one, D-FINE and DEIM.
        costs ([`Costs`], *optional*): of the matching.

    Example:

    ```python
    >>> import torch
    >>> from hgnetv2_hf.training import DetectionCriterion

    >>> criterion = DetectionCriterion("rtdetrv2", num_classes=2)
    >>> outputs = {"pred_logits": torch.zeros(1, 5, 2), "pred_boxes": torch.full((1, 5, 4), 0.5)}
    >>> targets = [{"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.5, 0.5]])}]
    >>> sorted(criterion(outputs, targets))
    ['loss_bbox', 'loss_giou', 'loss_vfl']

    ```
    """

    def __init__(
        self, family: str = "dfine", num_classes: int = 80, weights: Optional[dict[str, float]] = None,
        alpha: Optional[float] = None, gamma: Optional[float] = None, reg_max: int = 32, costs: Costs = COSTS,
    ):  # fmt: skip
        super().__init__()
        if family not in FAMILIES:
            raise TrainingError(f"Unsupported family {family!r}: expected {', '.join(FAMILIES)}.")
        self.family, self.num_classes, self.reg_max, self.costs = FAMILIES[family], num_classes, reg_max, costs
        unknown = sorted(set(weights or ()) - set(self.family.weights))
        if unknown:
            raise TrainingError(f"{family} has no {', '.join(unknown)}; it has {', '.join(self.family.weights)}.")
        self.weights = {**self.family.weights, **(weights or {})}
        self.alpha = self.family.alpha if alpha is None else alpha
        self.gamma = self.family.gamma if gamma is None else gamma

    def forward(self, outputs: dict, targets: list[dict]) -> dict[str, torch.Tensor]:
        """
        Args:
            outputs (`dict`): what the original's decoder returns in training: `pred_logits` `(images, queries,
                classes)`, `pred_boxes` `(images, queries, 4)`, `aux_outputs`, `enc_aux_outputs`, `dn_meta`, …
            targets (`list[dict]`): of each image, `labels` `(n,)` and `boxes` `(n, 4)`, centre and size in 0…1.

        Returns:
            `dict[str, torch.Tensor]`: weighted losses under the original's names; their sum is what is minimised.

        Raises:
            `TrainingError`: a label is no class.
        """
        targets = [{"labels": target["labels"].long(), "boxes": target["boxes"]} for target in targets]
        self._check(targets)
        heads = self._heads(outputs, targets)
        shared = None
        if self.family.shares_union:
            shared = union([head.assignments for head in heads if not head.is_denoising])
        counts = _count(outputs, targets, shared)
        like = outputs["pred_boxes"]
        pairs_of_boxes = None if shared is None else gather(shared, targets, like)
        losses, edges = {}, {}  # the edges of the union and of the denoising queries, which are those of every layer
        for head in heads:
            pairs = gather(head.assignments, head.targets, like)
            normaliser = box_normaliser = counts.objects
            box_pairs = pairs
            if head.is_denoising:
                normaliser = box_normaliser = counts.objects * outputs["dn_meta"]["dn_num_group"] or 1
            elif shared is not None:
                box_pairs, box_normaliser = pairs_of_boxes, max(counts.pairs, 1)
            found = {
                **self._class_loss(head.outputs, pairs, normaliser),
                **_box_losses(head.outputs["pred_boxes"], box_pairs, box_normaliser),
            }
            if self.family.has_distributions and "pred_corners" in head.outputs:
                key = head.is_denoising
                if key not in edges:
                    points = box_pairs.of(head.outputs["ref_points"]).detach()
                    edges[key] = edges_to_bins(
                        points, to_corners(box_pairs.boxes), outputs["up"], outputs["reg_scale"], self.reg_max
                    )
                found.update(self._distribution_losses(head, box_pairs, edges[key], box_normaliser, counts))
            losses.update({f"{name}{head.suffix}": value * self.weights[name] for name, value in found.items()})
        if self.family.nan_is_zero:
            losses = {name: torch.nan_to_num(value, nan=0.0) for name, value in losses.items()}
        return losses

    def _check(self, targets):
        for index, target in enumerate(targets):
            labels = target["labels"]
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
                raise TrainingError(
                    f"Image {index} of the batch has the label {int(labels.max())}, but there are {self.num_classes} "
                    "classes."
                )

    def _heads(self, outputs, targets):
        """Every prediction with its assignments: the last layer, the others, the one before the first, the encoder's,
        and those of the denoising queries."""
        named = [("", outputs)]
        named += [(f"_aux_{index}", each) for index, each in enumerate(outputs.get("aux_outputs", ()))]
        named += [("_pre", outputs["pre_outputs"])] if "pre_outputs" in outputs else []
        matched = match(
            torch.stack([each["pred_logits"] for _, each in named]),
            torch.stack([each["pred_boxes"] for _, each in named]),
            targets,
            self.costs,
        )
        heads = [_Head(suffix, each, targets, assignments) for (suffix, each), assignments in zip(named, matched)]
        seen = targets
        if outputs.get("enc_meta", {}).get("class_agnostic"):
            seen = [{**target, "labels": torch.zeros_like(target["labels"])} for target in targets]
        for index, each in enumerate(outputs.get("enc_aux_outputs", ())):
            (assignments,) = match(each["pred_logits"][None], each["pred_boxes"][None], seen, self.costs)
            heads.append(_Head(f"_enc_{index}", each, seen, assignments))
        denoising = outputs.get("dn_outputs", outputs.get("dn_aux_outputs"))
        if denoising is not None:
            assignments = denoising_assignments(outputs["dn_meta"], targets)
            named = [(f"_dn_{index}", each) for index, each in enumerate(denoising)]
            named += [("_dn_pre", outputs["dn_pre_outputs"])] if "dn_pre_outputs" in outputs else []
            heads += [_Head(suffix, each, targets, assignments, is_denoising=True) for suffix, each in named]
        return heads

    def _class_loss(self, outputs, pairs, normaliser):
        """Varifocal loss (Zhang et al. 2021), or DEIM's matchability-aware loss: the score is to be the IoU."""
        logits, boxes = outputs["pred_logits"], outputs["pred_boxes"]
        iou, _ = overlaps(to_corners(pairs.of(boxes).detach()), to_corners(pairs.boxes))
        index = (pairs.images, pairs.queries, pairs.labels)
        is_object, score = torch.zeros_like(logits), torch.zeros_like(logits)
        is_object[index] = 1.0
        score[index] = iou.to(logits.dtype)
        predicted = logits.sigmoid().detach()
        if self.family.class_loss == "mal":
            score = score**self.gamma
            weight = predicted**self.gamma * (1 - is_object) + is_object
        else:
            weight = self.alpha * predicted**self.gamma * (1 - is_object) + score
        loss = F.binary_cross_entropy_with_logits(logits, score, weight=weight, reduction="sum")
        return {f"loss_{self.family.class_loss}": loss / normaliser}

    def _distribution_losses(self, head, pairs, edges, normaliser, counts):
        """Fine-grained localisation (FGL) and, towards the last layer, its distillation (DDF)."""
        corners = head.outputs["pred_corners"]
        left, to_right, to_left = edges
        predicted = pairs.of(corners).reshape(-1, self.reg_max + 1)
        iou, _ = overlaps(to_corners(pairs.of(head.outputs["pred_boxes"]).detach()), to_corners(pairs.boxes))
        log_share = F.log_softmax(predicted, 1)
        at_left, at_right = (log_share.gather(1, each[:, None])[:, 0] for each in (left, left + 1))
        fgl = -(at_left * to_left + at_right * to_right) * iou.repeat_interleave(4)
        losses = {"loss_fgl": fgl.sum() / normaliser}
        teacher = head.outputs.get("teacher_corners")
        if teacher is None:
            return losses
        if torch.equal(corners, teacher):
            return {**losses, "loss_ddf": corners.sum() * 0} if self.family.teaches_itself else losses
        return {**losses, "loss_ddf": self._distillation(head, pairs, iou, counts)}

    def _distillation(self, head, pairs, iou, counts):
        corners, teacher = (
            head.outputs[name].unflatten(-1, (4, self.reg_max + 1)) / TEMPERATURE
            for name in ("pred_corners", "teacher_corners")
        )
        divergence = F.kl_div(
            F.log_softmax(corners, -1), F.log_softmax(teacher.detach(), -1), reduction="none", log_target=True
        ).sum((-2, -1))
        weight = head.outputs["teacher_logits"].detach().sigmoid().amax(-1)
        weight[pairs.images, pairs.queries] = iou.to(weight.dtype)
        loss = weight * divergence * TEMPERATURE**2 / 4  # the mean of the four edges
        is_pair = torch.zeros_like(loss)
        is_pair[pairs.images, pairs.queries] = 1.0
        of_pairs = (
            (counts.denoising_pairs, counts.denoising_rest) if head.is_denoising else (counts.pairs, counts.rest)
        )
        with_object, without = (
            (loss * mask).sum() / max(count, 1e-12) for mask, count in zip((is_pair, 1 - is_pair), of_pairs)
        )
        # The balance is that of the ordinary queries. Images per process do not matter: 8 of them are assumed.
        scale = 4 * 8 / len(loss)
        balance = [(count * scale) ** 0.5 for count in (counts.pairs, counts.rest)]
        return (with_object * balance[0] + without * balance[1]) / sum(balance)


def _box_losses(boxes, pairs, normaliser):
    predicted = pairs.of(boxes)
    _, giou = overlaps(to_corners(predicted), to_corners(pairs.boxes))
    return {
        "loss_bbox": (predicted - pairs.boxes).abs().sum() / normaliser,
        "loss_giou": (1 - giou).sum() / normaliser,
    }


def denoising_assignments(meta, targets):
    """The denoising queries that were made from an object belong to it, in every group."""
    groups, assignments = meta["dn_num_group"], []
    for index, target in enumerate(targets):
        objects = torch.arange(len(target["labels"])).tile(groups)
        queries = meta["dn_positive_idx"][index] if len(objects) else objects
        assignments.append((queries.long().cpu(), objects))
    return assignments


def _count(outputs, targets, shared):
    """The [`_Counts`] of a batch: a loss over all processes is then the mean of theirs.

    The originals share the number of objects between processes, and this also shares what balances DDF, which in the
    originals depends on how a batch is spread over processes.
    """
    objects = sum(len(target["labels"]) for target in targets)
    pairs = 0 if shared is None else sum(len(queries) for queries, _ in shared)
    images, queries = outputs["pred_logits"].shape[:2]
    meta = outputs.get("dn_meta") or {"dn_num_group": 0, "dn_num_split": [0, queries]}
    denoising_pairs = objects * meta["dn_num_group"]
    values = [
        objects, pairs, images * queries - pairs, denoising_pairs, images * meta["dn_num_split"][0] - denoising_pairs,
    ]  # fmt: skip
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        shared_values = torch.tensor(values, dtype=torch.float64, device=outputs["pred_logits"].device)
        torch.distributed.all_reduce(shared_values)
        values = (shared_values / torch.distributed.get_world_size()).tolist()
    return _Counts(max(values[0], 1), *values[1:])
