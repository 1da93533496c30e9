"""Whether a classifier is right as often as it is sure (Guo et al. 2017, "On Calibration of Modern Neural
Networks")."""

import numpy as np


BINS = 15


def reliability(confidences, right, bins=BINS):
    """
    Args:
        confidences (`np.ndarray`): `(images,)`, the largest softmax probability of each image, 0…1.
        right (`np.ndarray`): `(images,)` bool, whether that class is the true one.
        bins (`int`, defaults to 15): intervals of the same width, ``(i / bins, (i + 1) / bins]``; 0 is in the first.

    Returns:
        `list[dict]`: per bin `low`, `high`, `images`, and the means `confidence` and `accuracy` of its images (`None`
            where there are none).
    """
    confidences, right = np.asarray(confidences, dtype="float64"), np.asarray(right, dtype="float64")
    edges = np.linspace(0, 1, bins + 1)
    place = np.searchsorted(edges[1:-1], confidences, side="left")
    images = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, weights, minlength=bins) for weights in (confidences, right)]
    return [
        {
            "low": float(edges[index]),
            "high": float(edges[index + 1]),
            "images": int(count),
            "confidence": float(sums[0][index] / count) if count else None,
            "accuracy": float(sums[1][index] / count) if count else None,
        }
        for index, count in enumerate(images.tolist())
    ]


def expected_calibration_error(rows):
    """
    The mean distance between confidence and accuracy: the sum over bins of images in the bin / images × |accuracy −
    confidence|.

    Args:
        rows (`list[dict]`): of [`reliability`].

    Returns:
        `float` or `None`: 0…1; `None` without an image.
    """
    images = sum(row["images"] for row in rows)
    if not images:
        return None
    return sum(row["images"] * abs(row["accuracy"] - row["confidence"]) for row in rows if row["images"]) / images
