"""`detect`: pictures and rows for files, in order, whatever interrupts it, by any model."""

import csv
import json
import os
import re
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import transformers

from hgnetv2_hf.cli import main
from hgnetv2_hf.errors import InferenceError
from hgnetv2_hf.inference.detect import detect, draw_detections


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SIDES = ["xmin", "ymin", "xmax", "ymax"]


@pytest.fixture
def images(tmp_path):
    """Nine pictures of several sizes, one that lies on its side by its EXIF tag, and one file that is none."""
    folder, random = tmp_path / "images", np.random.RandomState(0)
    folder.mkdir()
    for index in range(9):
        pixels = random.randint(0, 256, (40 + 10 * index, 90, 3), dtype="uint8")
        PIL.Image.fromarray(pixels).save(folder / f"{index}.png")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(pixels).save(folder / "turned.jpg", exif=exif)
    (folder / "4.png").write_bytes(b"no image")
    return folder


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_those_of_the_pipeline_in_order(detector, images, tmp_path):
    summary = detect([str(images)], detector, tmp_path / "out", threshold=0.3, batch_size=3, show=str)
    assert (summary["images"], summary["unreadable"], summary["resumed"]) == (10, 1, 0)
    table = rows(tmp_path / "out" / "detections.csv")
    assert [row["error"] for row in table if row["error"]] and len(table) == summary["objects"] + 1
    assert list(dict.fromkeys(row["image"] for row in table)) == sorted(str(path) for path in images.iterdir())
    pipe = transformers.pipeline("object-detection", model=str(detector), device="cpu")
    good = [path for path in sorted(images.iterdir()) if path.name != "4.png"]
    for path in good:
        expected = pipe(str(path), threshold=0.3)
        found = [row for row in table if row["image"] == str(path)]
        assert [row["label"] for row in found] == [each["label"] for each in expected]
        for row, each in zip(found, expected):
            assert float(row["score"]) == pytest.approx(each["score"], abs=1e-4)
            assert [int(float(row[side])) for side in SIDES] == pytest.approx(list(each["box"].values()), abs=1)
    pictures = {path.name: PIL.Image.open(path).size for path in (tmp_path / "out").glob("*.png")}
    assert pictures == {f"{path.stem}.png": upright_size(path) for path in good}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*pictures, "detections.csv"}


def upright_size(path):
    width, height = PIL.Image.open(path).size
    return (height, width) if path.suffix == ".jpg" else (width, height)


def test_cocos_results_load_with_the_coco_tools(detector, images, tmp_path):
    coco = pytest.importorskip("pycocotools.coco", reason="comes with the extra [test]")
    summary = detect([str(images)], detector, tmp_path / "out", 0.2, "coco", pictures=False, top_k=3, show=str)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"detections.json", "images.json"}
    truth = coco.COCO()
    truth.dataset = json.loads((tmp_path / "out" / "images.json").read_text())
    truth.dataset["annotations"] = []
    truth.createIndex()
    found = truth.loadRes(str(tmp_path / "out" / "detections.json"))
    assert len(found.anns) == summary["objects"] > 9 and len(truth.dataset["images"]) == 10
    counts = [len(found.getAnnIds(image["id"])) for image in truth.dataset["images"]]
    assert max(counts) == 3 and counts[4] == 0 and "error" in truth.dataset["images"][4]


def test_an_interrupted_run_continues_and_ends_the_same(detector, images, tmp_path, monkeypatch):
    whole = detect([str(images)], detector, tmp_path / "whole", 0.3, show=str)
    draw, drawn = draw_detections, []

    def fails_at_the_sixth(image, objects):
        drawn.append(image)
        if len(drawn) == 6:
            raise KeyboardInterrupt
        return draw(image, objects)

    monkeypatch.setattr("hgnetv2_hf.inference.detect.draw_detections", fails_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        detect([str(images)], detector, tmp_path / "out", 0.3, batch_size=1, workers=1, show=str)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    (unfinished,) = tmp_path.glob(".out.*.unfinished")
    (unfinished / "gone.png").write_bytes(b"drawn, of an image that is gone since")
    PIL.Image.new("RGB", (30, 30)).save(images / "3.png")  # replaced meanwhile: done again from here on
    again = detect([str(images)], detector, tmp_path / "out", 0.3, show=str)
    assert again["resumed"] == 3 and again["images"] == whole["images"]
    first, second = (rows(tmp_path / name / "detections.csv") for name in ("whole", "out"))
    changed = str(images / "3.png")
    assert [row for row in first if row["image"] != changed] == [row for row in second if row["image"] != changed]
    names = [{path.name for path in (tmp_path / name).iterdir()} for name in ("whole", "out")]
    assert names[0] == names[1] and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_never_began_leaves_nothing(detector, images, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("hgnetv2_hf.inference.predictors.Predictor.__call__", fails)
    with pytest.raises(InferenceError, match="cannot be run: out of memory"):
        detect([str(images)], detector, tmp_path / "out", show=str)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"top_k": 0}, {"workers": 0}, {"format": "xml"}])
def test_values_that_cannot_be_are_refused(detector, images, tmp_path, wrong):
    with pytest.raises(InferenceError, match="Unsupported|no format"):
        detect([str(images)], detector, tmp_path / "out", **wrong)


def test_detect_lists_a_bad_image_with_its_error_and_numbers_equal_names(detector, tmp_path, capsys):
    images = tmp_path / "images"
    for path in ("a/photo.png", "b/photo.png"):
        (images / path).parent.mkdir(parents=True)
        PIL.Image.radial_gradient("L").resize((80, 60)).save(images / path)
    (images / "broken.jpg").write_bytes(b"not an image")
    out = tmp_path / "out"
    arguments = ["detect", str(images), "--model", str(detector), "--output", str(out), "--threshold", "0"]
    assert main(arguments) == 0
    assert "in 2 images" in (printed := capsys.readouterr().out) and "1 image could not be read" in printed
    assert {path.name for path in out.iterdir()} == {"photo.png", "photo-2.png", "detections.csv"}
    with open(out / "detections.csv", encoding="utf-8", newline="") as file:
        (broken,) = [row for row in csv.DictReader(file) if row["error"]]
    assert broken["image"].endswith("broken.jpg") and not broken["label"]
    assert main(arguments) == 1 and "exists already" in capsys.readouterr().err
    for table in ("coco", "jsonl", "csv"):
        assert main([*arguments, "--overwrite", "--format", table]) == 0


def test_detect_works_without_torchvision_and_its_labels_can_be_read(detector, tmp_path):
    PIL.Image.new("RGB", (1600, 1200)).save(tmp_path / "image.png")
    code = "import sys; sys.modules['torchvision'] = None\nfrom hgnetv2_hf import cli\n"
    code += "from hgnetv2_hf.inference import detect\nsys.exit(cli.main(sys.argv[1:]))"
    arguments = ["detect", tmp_path / "image.png", "--model", detector, "--output", tmp_path / "out"]
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
    assert "0 objects in 1 image ->" in run.stdout, run.stderr[-2000:]
    box = {"xmin": 100, "ymin": 300, "xmax": 700, "ymax": 900}
    picture = PIL.Image.new("RGB", (1600, 1200))
    drawn = np.asarray(draw_detections(picture, [{"label": "person", "score": 0.9, "box": box}]))
    rows = np.flatnonzero((drawn == 255).all(-1).any(1))  # the text is white
    assert rows[-1] < 300 and rows[-1] - rows[0] > 1200 / 50


def test_detect_lists_names_that_are_not_text(detector, tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    PIL.Image.radial_gradient("L").save(tmp_path / "image.png")
    os.rename(tmp_path / "image.png", name)
    for table in ("csv", "jsonl"):
        out = tmp_path / table
        arguments = ["--model", str(detector), "--output", str(out), "--threshold", "0", "--format", table]
        assert main(["detect", os.fsdecode(name), *arguments]) == 0
        assert f"file://{tmp_path}/caf%E9.png" in (out / f"detections.{table}").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"image": "/no/such/*.png"}, "no image"),
        ({"model": "/no/such/model"}, "no folder /no/such/model"),
        ({"output": "used"}, "refuses to delete"),
    ],
)
def test_detect_refuses_in_one_line_and_writes_nothing(detector, tmp_path, capsys, change, words):
    image, used = tmp_path / "image.png", tmp_path / "used"
    PIL.Image.new("RGB", (40, 40)).save(image)
    used.mkdir()
    (used / "mine.txt").write_text("mine")
    output = str(tmp_path / change.get("output", "out"))
    model = change.get("model", str(detector))
    arguments = ["detect", change.get("image", str(image)), "--model", model, "--output", output, "--overwrite"]
    capsys.readouterr()
    assert main(arguments) == 1
    errors = [line for line in re.split(r"[\r\n]", capsys.readouterr().err) if line.startswith("hgnetv2-hf:")]
    assert len(errors) == 1 and words in errors[0]
    assert not (tmp_path / "out").exists() and (used / "mine.txt").exists()
