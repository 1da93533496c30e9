"""Pages of pictures: drawn whatever the names and however many classes."""

import numpy as np
import PIL.Image
import pytest

from hgnetv2_hf.evaluation.calibration import reliability
from hgnetv2_hf.evaluation.coco import RECALLS
from hgnetv2_hf.evaluation.confusion import confused_pairs
from hgnetv2_hf.evaluation.pictures import can_draw, draw_classifier, draw_comparison, draw_detector


needs_matplotlib = pytest.mark.skipif(not can_draw(), reason="comes with the extra [plot]")


def test_confused_pairs_are_the_most_frequent_wrong_answers():
    confusion = np.array([[9, 2, 0], [5, 9, 0], [0, 1, 9]])
    assert confused_pairs(confusion, ["a", "b", "c"], 2) == [("b", "a", 5), ("a", "b", 2)]
    assert confused_pairs(np.eye(3, dtype=int), ["a", "b", "c"], 2) == []


@needs_matplotlib
@pytest.mark.parametrize("classes, mistakes", [(3, 7), (61, 0)])
def test_a_page_is_drawn_whatever_the_names_and_however_many(tmp_path, classes, mistakes):
    names = [f"price of $x_{index}$ is \\$" for index in range(classes)]
    image = PIL.Image.new("RGB", (40, 30), "red")
    confusion = np.eye(classes, dtype=int)
    confusion[0, 1] = 3
    bins = reliability([0.9, 0.4], [True, False])
    draw_classifier(tmp_path / "classifier.png", "a $ b", confusion, names, bins, [(image, names[0])] * mistakes)
    boxes = [([3, 3, 20, 20], names[0], "missed"), ([5, 5, 20, 30], names[1], "wrong")]
    curves = dict.fromkeys(("AP", "AP50", "AP75"), np.full(len(RECALLS), np.nan))
    confusion = np.zeros((classes + 1, classes + 1), dtype=int)
    draw_detector(tmp_path / "detector.png", "a", confusion, names, curves, [(image, "1 missed", boxes)] * mistakes)
    draw_comparison(tmp_path / "comparison.png", [("a", 1.0, 50.0), (names[0], 100.0, 60.0)], "AP %")
    assert all(
        PIL.Image.open(tmp_path / f"{name}.png").width > 300 for name in ("classifier", "detector", "comparison")
    )
