"""COCO's figures, equal to COCO's own tools, and what else is counted of detections."""

import contextlib
import dataclasses
import importlib.util
import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hgnetv2_hf.errors import HGNetV2Error
from hgnetv2_hf.evaluation import coco
from hgnetv2_hf.evaluation.boxes import best_boxes, overlaps, pair
from hgnetv2_hf.evaluation.coco import RECALLS, coco_evaluation, coco_figures, detection_confusion


needs_coco_tools = pytest.mark.skipif(
    importlib.util.find_spec("faster_coco_eval") is None, reason="comes with the extra [detection]"
)
SUMMARY = "AP AP50 AP75 AP_small AP_medium AP_large AR_1 AR_10 AR_100 AR_small AR_medium AR_large".split()


@dataclasses.dataclass
class Objects:
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray


def objects(boxes=(), labels=(), crowd=None):
    boxes = np.array(boxes, dtype="float64").reshape(-1, 4)
    crowd = np.zeros(len(boxes), dtype=bool) if crowd is None else np.array(crowd, dtype=bool)
    return Objects(boxes, np.array(labels, dtype="int64"), crowd, np.prod(boxes[:, 2:] - boxes[:, :2], 1))


def detected(boxes=(), labels=(), scores=()):
    boxes = np.array(boxes, dtype="float64").reshape(-1, 4)
    return {"scores": np.array(scores, dtype="float64"), "labels": np.array(labels, dtype="int64"), "boxes": boxes}


def random_boxes(random, count):
    corner, sides = random.uniform(0, 300, (count, 2)), random.lognormal(4, 1, (count, 2)).clip(1, 400)
    return np.concatenate([corner, corner + sides], 1)


def random_case(seed):
    """Images with objects, crowds and detections near them and anywhere, some of each with none."""
    random = np.random.RandomState(seed)
    classes, answers, detections = random.randint(1, 6), [], []
    for _ in range(random.randint(1, 7)):
        boxes = random_boxes(random, random.randint(0, 12) * random.randint(0, 2))
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], 1) * random.choice([1.0, 0.3, 0.7], len(boxes))
        labels = random.randint(0, max(1, classes - 1), len(boxes))  # the last class has no box, or one
        answers.append(Objects(boxes, labels, random.uniform(size=len(boxes)) < 0.2, areas))
        near = np.repeat(np.arange(len(boxes)), random.randint(0, 4))
        others = random_boxes(random, random.choice([0, 0, 5, 250]))
        found = np.concatenate([boxes[near] + random.normal(0, 8, (len(near), 4)), others])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 0.5)
        guesses = np.concatenate([labels[near], random.randint(0, classes, len(others))])
        guesses = np.where(random.uniform(size=len(guesses)) < 0.1, random.randint(0, classes, len(guesses)), guesses)
        scores = random.uniform(size=len(found)).round(random.choice([1, 6]))  # with ties
        if random.uniform() < 0.2:
            found, guesses, scores = found[:0], guesses[:0], scores[:0]
        detections.append({"scores": scores, "labels": guesses, "boxes": found})
    return detections, answers, [f"class {index}" for index in range(classes)]


def figures_of_pycocotools(detections, answers, classes):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def index(rows):
        indexed = COCO()
        indexed.dataset = {
            "images": [{"id": number} for number in range(len(answers))],
            "categories": [{"id": number + 1} for number in range(len(classes))],
            "annotations": [{**row, "id": number + 1} for number, row in enumerate(rows)],
        }
        indexed.createIndex()
        return indexed

    def row(image, box, label, **others):
        left, top, right, bottom = map(float, box)
        box = [left, top, right - left, bottom - top]
        return {"image_id": image, "category_id": int(label) + 1, "bbox": box, "iscrowd": 0, **others}

    truth = index(
        row(image, box, label, area=float(area), iscrowd=int(crowd))
        for image, each in enumerate(answers)
        for box, label, area, crowd in zip(each.boxes, each.labels, each.areas, each.crowd)
    )
    found = index(
        row(image, box, label, area=float((box[2] - box[0]) * (box[3] - box[1])), score=float(score))
        for image, each in enumerate(detections)
        for box, label, score in zip(each["boxes"], each["labels"], each["scores"])
    )
    evaluation = COCOeval(truth, found, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


@needs_coco_tools
@pytest.mark.parametrize("seeds", [range(0, 50), *(pytest.param(range(n, n + 50)) for n in (50, 100, 150))])
def test_coco_figures_are_those_of_pycocotools(seeds, capsys, monkeypatch):
    pytest.importorskip("pycocotools", reason="comes with the extra [test]")
    for seed in seeds:
        monkeypatch.setattr(coco, "_AT_ONCE", [100_000, 50, 1][seed % 3])
        detections, answers, classes = random_case(seed)
        figures, curves = coco_evaluation(detections, answers, classes)
        assert capsys.readouterr() == ("", "")
        with contextlib.redirect_stdout(io.StringIO()):
            original = figures_of_pycocotools(detections, answers, classes)
        expected = [None if value == -1 else pytest.approx(value, abs=1e-9) for value in original.stats]
        assert [figures[name] for name in SUMMARY] == expected, seed
        precision, recall = original.eval["precision"][..., 0, 2], original.eval["recall"][..., 0, 2]
        for index, name in enumerate(classes):
            own = figures["per_class"][name]
            for value, values in (("AP", precision[..., index]), ("AP50", precision[0, :, index])):
                values = values[values > -1]
                assert own[value] == (pytest.approx(values.mean(), abs=1e-9) if values.size else None)
            there = sum(int(((each.labels == index) & ~each.crowd).sum()) for each in answers)
            assert own["boxes"] == there and (own["AR_100"] is None) == (there == 0)
            assert own["AR_100"] is None or own["AR_100"] == pytest.approx(recall[:, index].mean(), abs=1e-9)
        for name in ("AP", "AP50", "AP75"):
            assert curves[name].shape == RECALLS.shape
            mean = curves[name].mean()
            assert np.isnan(mean) if figures[name] is None else mean == pytest.approx(figures[name], abs=1e-9)


@needs_coco_tools
def test_nothing_to_find_and_nothing_found_are_figures_too():
    box = [[10, 10, 60, 60]]
    missed = coco_figures([detected()], [objects(box, [0])], ["a", "b"])
    assert (missed["AP"], missed["AR_100"], missed["AP_small"], missed["AP_medium"]) == (0.0, 0.0, None, 0.0)
    assert missed["per_class"]["b"] == {"AP": None, "AP50": None, "AR_100": None, "boxes": 0}
    for case in ([detected(box, [0], [0.9])], [objects()], ["a"]), ([], [], ["a"]), ([detected()], [objects()], []):
        figures, curves = coco_evaluation(*case)
        assert {figures[name] for name in SUMMARY} == {None} and np.isnan(curves["AP"]).all()
    right = coco_figures([{name: torch.tensor(v) for name, v in detected(box, [0], [0.9]).items()}],
                         [objects(box, [0])], ["a"])  # fmt: skip
    assert right["AP"] == right["AR_1"] == 1.0


def test_a_missing_library_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(HGNetV2Error, match=r"pip install \"hgnetv2-hf\[detection\]\""):
        coco_figures([detected()], [objects()], ["a"])


@pytest.mark.parametrize("classes, queries, count", [(80, 300, 300), (3, 10, 10), (1, 5, 5)])
def test_best_boxes_are_those_of_transformers(classes, queries, count):
    pytest.importorskip("torchvision", reason="comes with the extra [torchvision]")
    from transformers import RTDetrImageProcessor

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, queries, classes, generator=generator) * 3
    boxes = torch.rand(2, queries, 4, generator=generator)
    sizes = [(480, 640), (333, 500)]
    expected = RTDetrImageProcessor().post_process_object_detection(
        SimpleNamespace(logits=logits, pred_boxes=boxes), threshold=0.0, target_sizes=sizes
    )
    for each, other in zip(best_boxes(logits, boxes, sizes, count), expected):
        assert torch.equal(each["scores"], other["scores"]) and torch.equal(each["labels"], other["labels"])
        assert torch.allclose(each["boxes"], other["boxes"], atol=1e-4)


def test_best_boxes_may_choose_a_query_for_several_classes():
    logits, boxes = torch.tensor([[[2.0, 1.0], [0.0, -1.0]]]), torch.tensor([[[0.5, 0.5, 1, 1], [0.25, 0.5, 0.5, 1]]])
    (best,) = best_boxes(logits, boxes, torch.tensor([[10, 20]]), count=3)
    assert best["labels"].tolist() == [0, 1, 0] and best["boxes"].tolist() == [[0, 0, 20, 10]] * 2 + [[0, 0, 10, 10]]
    assert torch.equal(best["scores"], torch.tensor([2.0, 1.0, 0.0]).sigmoid())
    (every,) = best_boxes(logits, boxes, [(10, 20)])
    assert len(every["scores"]) == 4


def test_overlaps_of_crowds_count_the_box_alone():
    boxes, others = [[0, 0, 10, 10], [20, 20, 30, 30]], [[0, 0, 10, 5], [0, 0, 100, 10], [5, 5, 5, 5]]
    assert overlaps(boxes, others, [False, True, False]).round(3).tolist() == [[0.5, 1.0, 0], [0, 0, 0]]
    assert overlaps(np.zeros((1, 4)), np.zeros((1, 4))).tolist() == [[0.0]]


def test_confusion_of_detections_has_a_row_and_a_column_for_nothing():
    there = objects([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 100, 40]], [0, 0, 1, 1], [0, 0, 0, 1])
    found = detected(
        [[0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 10], [200, 0, 210, 10], [70, 10, 80, 20], [40, 0, 50, 10]],
        [0, 1, 1, 0, 1, 1],
        [0.6, 0.9, 0.9, 0.9, 0.9, 0.5],
    )
    # The first is its object's, whatever overlaps better with another class; the third is taken for the other class;
    # the fourth is nothing; the fifth lies in the crowd; the last is not above the score, so its object is missed.
    expected = [[1, 1, 0], [0, 0, 1], [1, 1, 0]]
    assert detection_confusion([found, detected()], [there, objects()], ["a", "b"]).tolist() == expected
    pairs, lone, missed = pair(found, there)
    assert pairs.tolist() == [[0, 0], [2, 1]] and lone.tolist() == [1, 3] and missed.tolist() == [2]
    assert detection_confusion([detected()], [objects([[0, 0, 1, 1]], [0])], ["a"]).tolist() == [[0, 1], [0, 0]]
