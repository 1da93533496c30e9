"""What is measured of a model's answers."""

from types import SimpleNamespace

import numpy as np
import pytest

from hgnetv2_hf.data.objects import Objects
from hgnetv2_hf.evaluation.measure import measure_detector


pytest.importorskip("faster_coco_eval", reason="comes with the extra [detection]")
BOX = np.array([[10.0, 10.0, 50.0, 50.0]])


@pytest.mark.parametrize("ids, expected", [([2, 1], 0.5), ([1, 2], 1.0), (None, 1.0)])
def test_of_equal_scores_the_image_of_the_smaller_id_comes_first(ids, expected):
    """As in the COCO tools. The first image holds one object, which is found; the second none, and something is found
    there with the same score: before the other, or after it."""
    answers = [
        Objects(BOX, np.zeros(1, dtype="int64"), np.zeros(1, dtype=bool), np.array([1600.0])),
        Objects(BOX[:0], np.zeros(0, dtype="int64"), np.zeros(0, dtype=bool), np.zeros(0)),
    ]
    images = SimpleNamespace(
        answers=answers, classes=["thing"], title="two", ids=ids, images=SimpleNamespace(name=lambda index: str(index))
    )
    answer = {"scores": np.array([0.9]), "labels": np.zeros(1, dtype="int64"), "boxes": BOX}
    measured = measure_detector({}, images, np.array([0]), {0: answer, 1: answer})
    assert measured.metrics["AP50"] == pytest.approx(expected, abs=1e-9)
