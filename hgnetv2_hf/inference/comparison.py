"""How far another runtime's outputs lie from the model's: one by one, and a detector's queries as a set."""

import math

import numpy as np
import torch

from ..evaluation.boxes import surest_boxes


TOLERANCE = 1e-4
_CERTAIN = 1e-5
_TIED = 1e-5  # of the largest score: rounding moves the encoder's scores by up to 1e-6


def largest_difference(outputs, run, samples):
    """
    The largest relative difference of any output on any sample.

    Args:
        outputs (callable): pixels, a tensor, to a tuple of tensors.
        run (callable): pixels, an array, to a dictionary of arrays in the same order.
        samples (`list[torch.Tensor]`): `(batch, channels, height, width)` each.
    """
    differences = []
    for sample in samples:
        with torch.no_grad():
            expected = outputs(sample)
        for ours, theirs in zip(run(sample.numpy()).values(), expected):
            differences.append(float(np.abs(ours - theirs.numpy()).max()) / _magnitude(theirs.numpy()))
    return _largest(differences)


def detector_difference(model, run, samples):
    """
    The largest relative difference of any query of any image, `None` where they tie on every image and differ: see
    `export_model`.

    Args:
        model (`nn.Module`): a detector of Transformers.
        run (callable): array of pixels to a dictionary with `logits` and `pred_boxes`.
        samples (`list[torch.Tensor]`): `(batch, channels, height, width)` each.
    """
    differences = []
    for distances, is_tied in _query_distances(model, run, samples):
        difference = _largest(distances)
        if not (difference > TOLERANCE and is_tied):
            differences.append(difference)
    return _largest(differences) if differences else None


def typical_difference(model, run, samples):
    """The median over the queries instead, for a lower precision, which may choose a few others; infinite where one is
    not finite."""
    distances = [each for image, _ in _query_distances(model, run, samples) for each in image]
    return float(np.median(distances)) if np.isfinite(distances).all() else math.inf


def end_to_end_difference(exported, end_to_end, samples):
    """
    The largest difference between the boxes of a graph with the post-processing inside and those that are chosen from
    the outputs of the same graph without it: of the scores, and of the boxes relative to the larger side of the image,
    where scores are 1e-5 apart from both neighbours, so that their order is certain.

    Args:
        exported, end_to_end (`ExportedModel`)
        samples (`list[torch.Tensor]`): `(batch, channels, height, width)` each.
    """
    differences = []
    for sample in samples:
        sizes = np.array([[480, 640]] * len(sample))
        outputs = {name: torch.from_numpy(array) for name, array in exported.run(sample.numpy()).items()}
        scores, _, boxes = surest_boxes(
            outputs["logits"], outputs["pred_boxes"], torch.from_numpy(sizes), outputs["logits"].shape[1]
        )
        found = end_to_end.run(sample.numpy(), sizes)
        differences.append(float(np.abs(found["scores"] - scores.numpy()).max()))
        gaps = np.pad(-np.diff(scores.numpy()), ((0, 0), (1, 1)), constant_values=1)
        certain = np.minimum(gaps[:, :-1], gaps[:, 1:]) > _CERTAIN
        differences.append(float(np.abs(found["boxes"] - boxes.numpy())[certain].max(initial=0) / sizes.max()))
    return _largest(differences)


def _query_distances(model, run, samples):
    """Per image the relative distance of each query to its partner, and whether the choice of queries is a tie."""
    for sample in samples:
        with torch.no_grad():
            output = model(sample, return_dict=True)
        exported = run(sample.numpy())
        for image in range(len(sample)):
            distances = [
                _distances(exported[name][image], output[name][image].numpy()) for name in ("logits", "pred_boxes")
            ]
            yield _pair_closest(np.maximum(*distances)), _queries_tie(output, image)


def _distances(ours, theirs):
    """Between each of our queries (rows) and each of theirs (columns)."""
    return np.abs(ours[:, None] - theirs[None]).max(-1) / _magnitude(theirs)


def _pair_closest(distances):
    """One to one, the closest pair first: the distance of each pair."""
    distances, paired = distances.copy(), []
    for _ in range(len(distances)):
        row, column = np.unravel_index(np.argmin(distances), distances.shape)
        paired.append(float(distances[row, column]))
        distances[row, :] = distances[:, column] = np.inf
    return paired


def _queries_tie(output, image):
    """Whether the last query chosen and the first left out have the same score within rounding."""
    scores = getattr(output, "enc_outputs_class", None)
    if scores is None:
        return False
    scores = scores[image].max(-1).values.sort(descending=True).values
    chosen = output.logits.shape[1]
    return len(scores) > chosen and bool(scores[chosen - 1] - scores[chosen] <= _TIED * scores.abs().max())


def _magnitude(array):
    return max(float(np.abs(array).max()), float(np.finfo(np.float32).tiny))


def _largest(differences):
    return max(differences, key=lambda value: math.inf if math.isnan(value) else value)
