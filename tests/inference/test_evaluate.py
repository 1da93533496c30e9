"""`evaluate`: the figures of any model on labelled images, and what is written of them."""

import contextlib
import csv
import dataclasses
import importlib.util
import io
import json
import shutil
from collections.abc import Sequence

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from small_detector import LABELS

import hgnetv2_hf
from hgnetv2_hf import evaluate
from hgnetv2_hf.cli import main
from hgnetv2_hf.data import digits
from hgnetv2_hf.data.load import load_data
from hgnetv2_hf.errors import InferenceError


SILENT = {"show": str}
HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
ID = ("image_id", "category_id")
needs_detectors = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("faster_coco_eval", "torchvision", "scipy"))),
    reason="comes with the extra [detection]",
)


@pytest.fixture(autouse=True)
def timed_once(monkeypatch):
    monkeypatch.setattr(importlib.import_module("hgnetv2_hf.inference.evaluate"), "_TIMED", (1, 0.0))


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Scans in a folder per digit, `train` and `val`, one of them no image."""
    folder = tmp_path_factory.mktemp("folders")
    images, labels = digits.load_held_out()
    for index, (image, label) in enumerate(zip(images[:120], labels)):
        place = folder / ("val" if index % 2 else "train") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{index:03}.png")
    (folder / "val" / "4" / "broken.png").write_bytes(b"no image")
    return folder


def test_figures_are_those_of_the_plain_model(digits_folder, scans, tmp_path):
    metrics = evaluate(digits_folder, str(scans), output_dir=tmp_path / "out", batch_size=7, **SILENT)
    files = [path for path in sorted((scans / "val").glob("*/*.png")) if path.name != "broken.png"]
    model = transformers.AutoModelForImageClassification.from_pretrained(digits_folder)
    processor = transformers.AutoImageProcessor.from_pretrained(digits_folder)
    with torch.no_grad():
        logits = model(processor([PIL.Image.open(path) for path in files], return_tensors="pt")["pixel_values"]).logits
    names = np.array([model.config.id2label[index] for index in range(10)])
    answers, confidences = names[logits.argmax(-1)], logits.softmax(-1).max(-1).values.numpy()
    true = np.array([path.parent.name for path in files])
    assert metrics["accuracy"] == (answers == true).mean() and metrics["images"] == 60
    bins = np.ceil(confidences * 15)
    gaps = [abs((answers == true)[bins == each].sum() - confidences[bins == each].sum()) for each in np.unique(bins)]
    assert metrics["ece"] == pytest.approx(sum(gaps) / 60, abs=1e-6)
    assert (
        metrics["images_per_second"] > 0 and metrics["dtype"] == "float32" and metrics["top5"] >= metrics["accuracy"]
    )
    table = rows(tmp_path / "out" / "results.csv")
    good = [row for row in table if not row["error"]]
    assert [row["image"] for row in table] == [str(path) for path in sorted((scans / "val").glob("*/*.png"))]
    assert [row["answer"] for row in good] == answers.tolist() and [row["class"] for row in good] == true.tolist()
    assert np.allclose([float(row["score"]) for row in good], confidences, atol=1e-5)
    assert [row["right"] == "1" for row in good] == (answers == true).tolist()
    (broken,) = metrics["unreadable"]
    assert broken["image"].endswith("broken.png") and "cannot identify" in broken["error"]
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["models"] == [metrics] and written["classes"] == list("0123456789")
    assert (tmp_path / "out" / "evaluation.png").is_file() == HAS_MATPLOTLIB


def test_several_models_are_one_table_and_a_folder_each(digits_folder, tmp_path, capsys, scans):
    other = tmp_path / "other" / digits_folder.name
    shutil.copytree(digits_folder, other)
    command = ["evaluate", str(digits_folder), str(other), str(scans), "--output", str(tmp_path / "out")]
    assert main([*command, "--limit", "30", "--dtype", "float32"]) == 0
    printed = capsys.readouterr().out.splitlines()
    head = next(index for index, line in enumerate(printed) if line.startswith("model "))
    assert printed[head].split() == ["model", "dtype", "top-1", "top-5", "ECE", "images/s"]
    assert [line.split()[0] for line in printed[head + 1 : head + 3]] == [str(digits_folder), str(other)]
    assert any("30 images" in line for line in printed) and any("batches of 16 on cpu" in line for line in printed)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"comparison.png"} if HAS_MATPLOTLIB else set()
    assert names == {"metrics.json", digits_folder.name, f"{digits_folder.name}-2"} | pictures
    assert len(rows(tmp_path / "out" / digits_folder.name / "results.csv")) == 30
    assert main(command) == 1 and "exists already" in capsys.readouterr().err
    assert main([*command[:2], *command[3:], "--overwrite"]) == 0
    assert (tmp_path / "out" / "results.csv").is_file() and not (tmp_path / "out" / digits_folder.name).exists()


def test_parts_are_those_of_the_data_and_what_a_training_held_out(digits_folder, scans):
    counts = {part: evaluate(digits_folder, str(scans), part=part, **SILENT)["images"] for part in ("train", "all")}
    assert counts == {"train": 60, "all": 120}
    with pytest.raises(InferenceError, match="no validation part; pass --part train"):
        evaluate(digits_folder, str(scans / "train"), **SILENT)
    held_out = load_data(str(scans / "train"), 0.2, 42).validation
    metrics = evaluate(digits_folder, str(scans / "train"), validation_fraction=0.2, **SILENT)
    assert metrics["images"] == len(held_out)


def test_labels_are_matched_by_name_and_an_unknown_class_is_one_sentence(digits_folder, scans, tmp_path, capsys):
    for name in "789":
        shutil.copytree(scans / "train" / name, tmp_path / "data" / name)
    metrics = evaluate(digits_folder, str(tmp_path / "data"), part="all", output_dir=tmp_path / "out", **SILENT)
    assert list(metrics["per_class"]) == ["7", "8", "9"] and metrics["accuracy"] > 0.9
    (tmp_path / "data" / "9").rename(tmp_path / "data" / "nine")
    assert main(["evaluate", str(digits_folder), str(tmp_path / "data"), "--part", "all"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "does not know this class" in error and "nine" in error


def test_a_model_in_memory_gives_the_same_figures_and_is_left_as_it_is(digits_folder):
    model = transformers.AutoModelForImageClassification.from_pretrained(digits_folder).train()
    expected = evaluate(digits_folder, "digits", limit=60, **SILENT)
    assert evaluate([model], "digits", limit=60, **SILENT)[0]["accuracy"] == expected["accuracy"]
    processor = transformers.AutoImageProcessor.from_pretrained(digits_folder)
    assert evaluate(model, "digits", limit=60, image_processor=processor, **SILENT)["ece"] == expected["ece"]
    assert model.training


@pytest.mark.slow
@pytest.mark.parametrize("format, modules", [("onnx", ("onnx", "onnxscript", "onnxruntime")),
                                             ("openvino", ("openvino",))])  # fmt: skip
def test_exported_folders_are_evaluated_too(digits_folder, tmp_path, format, modules):
    for module in modules:
        pytest.importorskip(module, reason=f"comes with the extra [{format}]")
    hgnetv2_hf.export_model(digits_folder, tmp_path / "exported", format=format)
    first, second = evaluate([digits_folder, tmp_path / "exported"], "digits", limit=100, **SILENT)
    assert second["runtime"] == format and second["accuracy"] == first["accuracy"]
    assert second["ece"] == pytest.approx(first["ece"], abs=1e-4)


@pytest.mark.parametrize(
    "arguments, status, sentence",
    [
        (["no-such", "digits"], 1, "There is no folder no-such"),
        (["MODEL", "/no/such/data"], 1, "no folder /no/such/data"),
        (["MODEL", "EMPTY"], 1, "holds no folders"),
        (["MODEL", "BROKEN", "--part", "all"], 1, "None of the 2 images"),
        (["EMPTY", "digits"], 1, " no model"),
        (["MODEL", "digits", "--device", "nonsense"], 1, "cannot be loaded"),
        (["MODEL"], 2, "the following arguments are required: DATA"),
        (["MODEL", "digits", "--part", "half"], 2, "invalid choice"),
        (["MODEL", "digits", "--limit", "0"], 2, "not a positive whole number"),
        (["MODEL", "digits", "--threshold", "2"], 2, "not a probability"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(digits_folder, tmp_path, capsys, arguments, status, sentence):
    (tmp_path / "empty").mkdir()
    for name in "01":
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "one.png").write_bytes(b"no image")
    places = {"MODEL": str(digits_folder), "EMPTY": str(tmp_path / "empty"), "BROKEN": str(tmp_path / "broken")}
    arguments = ["evaluate", *(places.get(each, each) for each in arguments), "--output", str(tmp_path / "out")]
    if status == 2:
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
    else:
        assert main(arguments) == status
    assert sentence in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / "out").exists()


# Detectors: the data are stand-ins for what `load_detection_data` returns.


@dataclasses.dataclass
class Objects:
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray


class Pictures(Sequence):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if self.images[index] is None:
            raise OSError("truncated")
        return self.images[index]

    def name(self, index):
        return f"image {index}"


@dataclasses.dataclass
class DetectionSplit:
    images: Sequence
    objects: list
    ids: list = None

    def __len__(self):
        return len(self.images)

    def select(self, indices):
        images, objects = ([each[index] for index in indices] for each in (self.images.images, self.objects))
        return DetectionSplit(Pictures(images), objects, [self.ids[index] for index in indices])


@dataclasses.dataclass
class DetectionData:
    title: str
    train: DetectionSplit
    validation: DetectionSplit
    classes: list
    held_out: str = ""
    skipped: list = dataclasses.field(default_factory=list)
    understood: list = dataclasses.field(default_factory=list)
    category_ids: list = None


@pytest.fixture(scope="module")
def found(detector):
    """Images, and what Transformers finds in them, all of it."""
    random = np.random.RandomState(0)
    sizes = [(50, 80), (64, 64), (120, 90), (40, 70)]
    images = [PIL.Image.fromarray(random.randint(0, 256, (*size, 3), dtype="uint8")) for size in sizes]
    model = transformers.AutoModelForObjectDetection.from_pretrained(detector).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(detector)
    with torch.no_grad():
        outputs = model(processor(images, return_tensors="pt")["pixel_values"])
    answers = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
    return images, [{name: value.numpy() for name, value in each.items()} for each in answers]


def things(found, classes, keep):
    """Some of what was found, a little moved, as the answers; labels in the order of ``classes``."""
    random, objects = np.random.RandomState(1), []
    for each in found:
        known = np.flatnonzero(np.isin(each["labels"], [LABELS.index(name) for name in classes]))[:keep]
        boxes = each["boxes"][known].astype("float64") + random.normal(0, 0.15, (len(known), 4))
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 0.5)
        labels = np.array([classes.index(LABELS[label]) for label in each["labels"][known]], dtype="int64")
        crowd = random.uniform(size=len(known)) < 0.2
        objects.append(Objects(boxes, labels, crowd, np.prod(boxes[:, 2:] - boxes[:, :2], 1)))
    return objects


@needs_detectors
def test_detections_are_those_of_transformers_and_figures_those_of_pycocotools(detector, found, tmp_path):
    pytest.importorskip("pycocotools", reason="comes with the extra [test]")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images, answers = found
    classes, ids, categories = ["star", "circle"], [7, 3, 12, 5], [9, 4]  # "square" is the model's alone
    objects = things(answers, classes, keep=6)
    split = DetectionSplit(Pictures(images), objects, ids)
    data = DetectionData("shapes", split, split, classes, category_ids=categories)
    metrics = evaluate(detector, data, output_dir=tmp_path / "out", batch_size=3, threshold=0.6, **SILENT)

    boxes = [
        (ids[image], categories[label], [*box[:2], *(box[2:] - box[:2])], area, int(crowd))
        for image, each in enumerate(objects)
        for box, label, area, crowd in zip(each.boxes, each.labels, each.areas, each.crowd)
    ]
    names = ("image_id", "category_id", "bbox", "area", "iscrowd")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": index} for index in ids],
            "categories": [{"id": index} for index in categories],
            "annotations": [{"id": 1 + number, **dict(zip(names, row))} for number, row in enumerate(boxes)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "out" / "detections.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    summary = "AP AP50 AP75 AP_small AP_medium AP_large AR_1 AR_10 AR_100 AR_small AR_medium AR_large".split()
    expected = [None if value == -1 else pytest.approx(value, abs=1e-6) for value in evaluation.stats]
    assert [metrics[name] for name in summary] == expected and 0.1 < metrics["AP"] < 1
    written = json.loads((tmp_path / "out" / "detections.json").read_text())
    for image, each in zip(ids, answers):
        kept = [index for index, label in enumerate(each["labels"]) if LABELS[label] in classes]
        own = [row for row in written if row["image_id"] == image]
        labels = [LABELS.index(classes[categories.index(row["category_id"])]) for row in own]
        assert labels == each["labels"][kept].tolist()
        assert np.allclose([row["score"] for row in own], each["scores"][kept], atol=1e-4)
        corners = np.array([row["bbox"] for row in own])
        corners[:, 2:] += corners[:, :2]
        assert np.allclose(corners, each["boxes"][kept], atol=1e-3)
    table = rows(tmp_path / "out" / "results.csv")
    assert list(table[0]) == ["image", "objects", "found", "missed", "extra", "worst_score", "error"]
    assert [int(row["objects"]) for row in table] == [int((~each.crowd).sum()) for each in objects]
    assert all(int(row["found"]) + int(row["missed"]) == int(row["objects"]) for row in table)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"evaluation.png"} if HAS_MATPLOTLIB else set()
    assert written == {"metrics.json", "results.csv", "confusion.csv", "detections.json"} | pictures


@needs_detectors
def test_a_detectors_broken_images_and_empty_ones_are_told_apart(detector, found):
    images, answers = found
    objects = things(answers, LABELS, keep=3)
    nothing = Objects(np.zeros((0, 4)), np.zeros(0, dtype="int64"), np.zeros(0, dtype=bool), np.zeros(0))
    split = DetectionSplit(Pictures([*images, None, images[0]]), [*objects, objects[0], nothing], list(range(6)))
    lines = []
    metrics = evaluate(detector, DetectionData("shapes", split, None, LABELS), part="train", show=lines.append)
    assert metrics["images"] == 5 and metrics["unreadable"] == [
        {"index": 4, "image": "image 4", "error": "truncated"}
    ]  # fmt: skip
    assert any("1 image could not be read" in line and "image 4" in line for line in lines)
    head = next(line for line in lines if line.startswith("model "))
    assert head.split() == "model dtype AP AP50 AP75 small medium large AR images/s".split()
    assert sum(row["boxes"] for row in metrics["per_class"].values()) == sum((~o.crowd).sum() for o in objects)


@needs_detectors
def test_models_and_data_of_two_tasks_are_one_sentence(detector, digits_folder, found):
    images, answers = found
    split = DetectionSplit(Pictures(images), things(answers, LABELS, 2), list(range(4)))
    with pytest.raises(InferenceError, match="shapes holds boxes of objects, and .* is a classifier"):
        evaluate(digits_folder, DetectionData("shapes", split, split, LABELS), **SILENT)
    with pytest.raises(InferenceError, match="digits holds a class per image, and .* is a detector"):
        evaluate(detector, "digits", **SILENT)
    with pytest.raises(InferenceError, match="is a classifier and .* a detector"):
        evaluate([detector, digits_folder], "digits", **SILENT)
    classes = ["circle", "box", "star"]
    used = {label for each in split.objects for label in each.labels.tolist()}
    assert 1 in used
    with pytest.raises(InferenceError, match="does not know this class of shapes: box"):
        evaluate(detector, DetectionData("shapes", split, split, classes), **SILENT)


@pytest.mark.slow
@needs_detectors
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_exported_detectors_are_evaluated_too(detector, found, tmp_path, format):
    pytest.importorskip({"onnx": "onnxruntime"}.get(format, format), reason=f"comes with the extra [{format}]")
    images, answers = found
    hgnetv2_hf.export_model(detector, tmp_path / "exported", format=format)
    split = DetectionSplit(Pictures(images), things(answers, LABELS, 6), list(range(4)))
    data = DetectionData("shapes", split, split, LABELS)
    lines = []
    metrics = evaluate([detector, tmp_path / "exported"], data, output_dir=tmp_path / "out", show=lines.append)
    (line,) = [line for line in lines if line.startswith("images/s:")]
    assert "batches of 16 on cpu" in line
    assert metrics[1]["batch_size"] == 16 and metrics[1]["runtime"] == format
    # Not AP: random weights find nearly the same in every image, so the order of detections is decided by rounding.
    first, second = (json.loads(path.read_text()) for path in sorted((tmp_path / "out").glob("*/detections.json")))
    assert len(first) == len(second) > 40
    for one in first:
        near = [each for each in second if [each[name] for name in ID] == [one[name] for name in ID]]
        assert any(
            each["score"] == pytest.approx(one["score"], abs=1e-4)
            and each["bbox"] == pytest.approx(one["bbox"], abs=1e-3)
            for each in near
        )
