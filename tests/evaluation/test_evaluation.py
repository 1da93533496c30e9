"""Figures from predictions and answers."""

import csv

import numpy as np
import PIL.Image
import pytest
import torch

from hgnetv2_hf.evaluation.accuracy import accuracies, close_to_chance, five_best, per_class
from hgnetv2_hf.evaluation.confusion import confusion_matrix, draw_confusion, write_confusion


LOGITS = torch.tensor([[9.0, 1, 2, 3, 4, 5, 6], [1, 9, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5, 6]])
LABELS = np.array([0, 1, 1, 0])


def test_accuracy_counts_the_best_answer_and_top5_the_five_best():
    best = five_best(LOGITS).numpy()
    assert best.shape == (4, 5) and best[2].tolist() == [0, 1, 2, 3, 4]
    assert accuracies(best, LABELS) == {"accuracy": 0.5, "top5": 0.75}
    assert five_best(LOGITS[:, :3]).shape == (4, 3)


def test_confusion_has_a_row_per_true_class_and_gives_the_accuracy_of_each(tmp_path):
    confusion = confusion_matrix(five_best(LOGITS).numpy()[:, 0], LABELS, 7)
    assert confusion.sum() == 4 and confusion[1].tolist() == [1, 1, 0, 0, 0, 0, 0] and confusion[0, 6] == 1
    names = ["a", "b", "c", "d", "e", "f", "g"]
    found = per_class(confusion, names)
    assert found["b"] == {"images": 2, "accuracy": 0.5} and found["c"] == {"images": 0, "accuracy": None}
    write_confusion(confusion, names, tmp_path / "confusion.csv")
    with open(tmp_path / "confusion.csv", newline="") as file:
        assert list(csv.reader(file))[:2] == [["class", *names], ["a", "1", "0", "0", "0", "0", "0", "1"]]


@pytest.mark.parametrize(
    "accuracy, images, sentence",
    [(0.52, [5, 5], "50.0%"), (0.9, [90, 10], "90.0%"), (0.95, [90, 10], None), (0.9, [5, 5], None), (0.0, [], None)],
)
def test_close_to_chance_is_measured_from_the_most_frequent_class(accuracy, images, sentence):
    found = close_to_chance(accuracy, images)
    assert found is None if sentence is None else sentence in found


def test_no_label_of_the_picture_of_confusions_is_cut(tmp_path):
    pytest.importorskip("matplotlib", reason="comes with the extra [train]")
    names = ["cat", "dog", "a flower with a name that does not want to end", "rose"]
    for classes in (names, list("0123456789")):
        confusion = np.eye(len(classes), dtype=int)
        assert draw_confusion(confusion, classes, tmp_path / "confusion.png")
        pixels = np.asarray(PIL.Image.open(tmp_path / "confusion.png").convert("L"))
        for edge in (pixels[:4], pixels[-4:], pixels[:, :4], pixels[:, -4:]):
            assert edge.min() == 255
