"""`classify`: rows for files, in order, at any size, whatever interrupts it."""

import csv
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from conftest import randomize

import hgnetv2_hf
from hgnetv2_hf.cli import main
from hgnetv2_hf.data import digits
from hgnetv2_hf.errors import InferenceError
from hgnetv2_hf.inference import precision
from hgnetv2_hf.inference.classify import classify
from hgnetv2_hf.inference.detect import detect
from hgnetv2_hf.inference.predictors import load_predictor, recognise


@pytest.fixture
def images(tmp_path):
    """Sixty scans, some in a folder inside, with two files that are no images."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for index, image in enumerate(digits.load_held_out()[0][:60]):
        image.save(folder / ("more" if index % 3 == 0 else ".") / f"{index:03}.png")
    (folder / "010.png").write_bytes(b"no image")
    (folder / "more" / "cut.jpg").write_bytes((folder / "011.png").read_bytes()[:100])
    (folder / "notes.txt").write_text("not looked at")
    return folder


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_those_of_the_pipeline_in_order(digits_folder, images, tmp_path):
    assert main(["classify", str(images), "--model", str(digits_folder), "--output", str(tmp_path / "out.csv")]) == 0
    table = rows(tmp_path / "out.csv")
    outer = sorted(str(path) for path in images.glob("*.png"))
    inner = sorted(str(path) for path in (images / "more").iterdir())
    assert [row["image"] for row in table] == outer + inner
    bad = [row for row in table if row["error"]]
    assert [os.path.basename(row["image"]) for row in bad] == ["010.png", "cut.jpg"]
    assert all(not row["label_1"] for row in bad)
    good = [row for row in table if not row["error"]]
    expected = transformers.pipeline("image-classification", model=str(digits_folder), device="cpu")(
        [row["image"] for row in good], top_k=5
    )
    for row, best in zip(good, expected):
        assert [row[f"label_{rank}"] for rank in range(1, 6)] == [each["label"] for each in best]
        assert np.allclose(
            [float(row[f"score_{rank}"]) for rank in range(1, 6)], [b["score"] for b in best], atol=1e-5
        )
    assert not list(tmp_path.glob(".*"))


def test_tables_agree_and_replace_only_when_told(digits_folder, images, tmp_path):
    pyarrow = pytest.importorskip("pyarrow.parquet", reason="comes with the extra [parquet]")
    found = {}
    for name in ("out.csv", "out.jsonl", "out.parquet"):
        result = classify([str(images)], digits_folder, tmp_path / name, top_k=2, show=str)
        assert (result["images"], result["unreadable"], result["resumed"]) == (61, 2, 0)
        with pytest.raises(InferenceError, match="exists already"):
            classify([str(images)], digits_folder, tmp_path / name)
        classify([str(images)], digits_folder, tmp_path / name, top_k=2, overwrite=True, show=str)
    found["csv"] = [
        (row["image"], row["label_1"] or None, row["label_2"] or None) for row in rows(tmp_path / "out.csv")
    ]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    found["jsonl"] = [(row["image"], row.get("label_1"), row.get("label_2")) for row in lines]
    table = pyarrow.read_table(tmp_path / "out.parquet").to_pylist()
    found["parquet"] = [(row["image"], row["label_1"], row["label_2"]) for row in table]
    assert found["csv"] == found["jsonl"] == found["parquet"]


def test_without_an_output_the_rows_are_printed(digits_folder, images, capsys):
    assert main(["classify", str(images / "01*.png"), "--model", str(digits_folder), "--top-k", "1"]) == 0
    printed = capsys.readouterr()
    lines = [line for line in (printed.out + printed.err).splitlines() if ".png: " in line]
    assert len(lines) == len(list(images.glob("01*.png")))


@pytest.mark.slow
def test_an_interrupted_run_continues_where_it_stopped(digits_folder, images, tmp_path):
    command = [sys.executable, "-m", "hgnetv2_hf.cli", "classify", str(images), "--model", str(digits_folder)]
    command += ["--output", str(tmp_path / "out.csv"), "--batch-size", "2", "--workers", "1"]
    slow = {**os.environ, "PYTHONPATH": str(tmp_path)}
    (tmp_path / "sitecustomize.py").write_text(
        "import PIL.Image, time\nopen_ = PIL.Image.open\n"
        "PIL.Image.open = lambda *a, **k: (time.sleep(0.1), open_(*a, **k))[1]\n"
    )
    process = subprocess.Popen(command, env=slow, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (journals := list(tmp_path.glob(".out.csv.*.jsonl"))) or journals[0].read_text().count("\n") < 10:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "out.csv").exists()
    with open(journals[0], "a", encoding="utf-8") as file:
        file.write('{"image": "half a li')
    finished = subprocess.run([part for part in command], capture_output=True, text=True, check=True)
    assert "continued after" in finished.stdout
    classify([str(images)], digits_folder, tmp_path / "whole.csv", show=str)
    resumed, whole = rows(tmp_path / "out.csv"), rows(tmp_path / "whole.csv")
    assert [(row["image"], row["label_1"], row["error"]) for row in resumed] == [
        (row["image"], row["label_1"], row["error"]) for row in whole
    ]


def test_images_replaced_meanwhile_are_classified_again(digits_folder, tmp_path, monkeypatch):
    """A run that stops before it writes its table, other images under the same names, and the same run again."""
    images, (zero, one) = tmp_path / "images", digits.load_held_out()[0][:2]
    images.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        zero.save(images / name)
    with monkeypatch.context() as patch:
        patch.setattr("hgnetv2_hf.inference.classify._write_table", lambda *_: sys.exit(1))
        with pytest.raises(SystemExit):
            classify([str(images)], digits_folder, tmp_path / "out.csv", show=str)
    one.save(images / "b.png")
    assert classify([str(images)], digits_folder, tmp_path / "out.csv", show=str)["resumed"] == 1
    classify([str(images)], digits_folder, tmp_path / "whole.csv", show=str)
    assert rows(tmp_path / "out.csv") == rows(tmp_path / "whole.csv")


def test_several_processes_of_a_launcher_are_refused(digits_folder, images, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InferenceError, match="several share the images by --engine ray"):
        classify([str(images)], digits_folder, tmp_path / "out.csv")


def test_another_model_or_other_files_start_anew(digits_folder, images, tmp_path):
    (tmp_path / ".out.csv.000000000000.partial.jsonl").write_text('{"image": "x", "labels": [], "error": null}\n')
    result = classify([str(images)], digits_folder, tmp_path / "out.csv", show=str)
    assert result["resumed"] == 0 and not list(tmp_path.glob(".out.csv.*.jsonl"))


@pytest.mark.slow
def test_optimised_exported_and_compiled_say_the_same(digits_folder, images, tmp_path):
    pytest.importorskip("openvino", reason="comes with the extra [openvino]")
    hgnetv2_hf.export_model(digits_folder, tmp_path / "openvino", "openvino")
    labels = []
    for folder, dtype in [
        (digits_folder, "float32"),
        (digits_folder, "bfloat16"),
        *((tmp_path / "openvino", d) for d in ("float32", "bfloat16")),
    ]:
        classify([str(images)], folder, tmp_path / "out.csv", dtype=dtype, batch_size=7, overwrite=True, show=str)
        labels.append([row["label_1"] for row in rows(tmp_path / "out.csv")])
    assert labels.count(labels[0]) == 4
    with pytest.raises(InferenceError, match="compiled by its runtime"):
        classify([str(images)], tmp_path / "openvino", compile=True)


def test_sizes_may_differ_where_nothing_is_cropped(tiny_fields, tmp_path):
    config = hgnetv2_hf.HGNetV2Config(**tiny_fields)
    randomize(hgnetv2_hf.HGNetV2ForImageClassification(config)).save_pretrained(tmp_path / "model")
    processor = hgnetv2_hf.HGNetV2ImageProcessor(size={"shortest_edge": 64}, do_center_crop=False)
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "images").mkdir()
    for index, size in enumerate([(64, 64), (90, 70), (64, 64), (50, 200)]):
        PIL.Image.effect_noise(size, 50).save(tmp_path / "images" / f"{index}.png")
    assert classify([str(tmp_path / "images")], tmp_path / "model", show=str)["unreadable"] == 0


def test_stocks_models_and_image_processors_are_classified_too(tmp_path):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=3)
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "model")
    transformers.ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(tmp_path / "model")
    PIL.Image.effect_noise((80, 90), 50).save(tmp_path / "image.png")
    assert classify([str(tmp_path / "image.png")], tmp_path / "model", show=str)["unreadable"] == 0


def test_a_processor_with_other_channels_than_the_network_gets_one_sentence(digits_folder, images, tmp_path):
    folder = shutil.copytree(digits_folder, tmp_path / "folder")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_mean": [0.5] * 2, "image_std": [0.5] * 2}))
    with pytest.raises(InferenceError, match="its processor prepares 2"):
        classify([str(images)], folder, tmp_path / "out.csv", show=str)


def test_weights_that_are_not_finite_get_one_sentence(digits_folder, images, tmp_path, capsys):
    network = transformers.AutoModelForImageClassification.from_pretrained(digits_folder)
    with torch.no_grad():
        network.last_conv.weight[0] = float("nan")
    network.save_pretrained(tmp_path / "broken")
    hgnetv2_hf.HGNetV2ImageProcessor.from_pretrained(digits_folder).save_pretrained(tmp_path / "broken")
    assert main(["classify", str(images), "--model", str(tmp_path / "broken")]) == 1
    assert "NaN" in capsys.readouterr().err.splitlines()[-1]


def test_scores_that_are_not_finite_get_one_sentence(digits_folder, images, tmp_path):
    model = transformers.AutoModelForImageClassification.from_pretrained(digits_folder)
    with torch.no_grad():
        model.fc.bias.fill_(float("nan"))  # which is not folded, so that nothing else looks at it
    model.save_pretrained(tmp_path / "nan")
    transformers.AutoImageProcessor.from_pretrained(digits_folder).save_pretrained(tmp_path / "nan")
    with pytest.raises(InferenceError, match="logits are not finite"):
        classify([str(images)], tmp_path / "nan", tmp_path / "out.csv")
    predictor = load_predictor(recognise(tmp_path / "nan"))
    with pytest.raises(InferenceError, match="outputs are not finite"):
        predictor([predictor.pixels(str(min(images.glob("*.png"))))], [(32, 32)])


def test_bad_requests_get_one_sentence(digits_folder, images, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments, message in [
        ([str(tmp_path / "nowhere.png"), "--model", str(digits_folder)], "no image"),
        ([str(tmp_path / "empty"), "--model", str(digits_folder)], "no image"),
        ([str(images), "--model", str(tmp_path / "empty")], "classifier"),
        ([str(images), "--model", str(digits_folder), "--output", str(tmp_path / "out.txt")], "Unsupported table"),
        ([str(images), "--model", str(digits_folder), "--output", str(tmp_path / "no" / "out.csv")], "Cannot write"),
    ]:
        assert main(["classify", *arguments]) == 1
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert main(["classify", str(images), "--model", str(digits_folder), "--output", "/dev/full/out.csv"]) == 1


@pytest.mark.parametrize("name", ["b0-flowers", "models/b4/last", "./b4", "/nowhere/b4", "b4/"])
def test_a_model_that_is_no_folder_is_refused_without_asking_the_hub(name, images, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *args, **options: asked.append(args))
    assert main(["classify", str(images), "--model", name]) == 1
    assert f"There is no folder {name}; expected a model's folder" in capsys.readouterr().err
    with pytest.raises(InferenceError, match=f"There is no folder {name}"):
        detect([str(images)], name, images.parent / "out")
    assert not asked


def test_detect_refuses_a_classifier_in_one_sentence(digits_folder, images, tmp_path, capsys):
    command = ["detect", str(images), "--model", str(digits_folder), "--output", str(tmp_path / "out")]
    assert main(command) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hgnetv2-hf:")]
    assert line == f"hgnetv2-hf: {digits_folder} is a classifier, not a detector; use classify."
    assert not (tmp_path / "out").exists()
    (tmp_path / "export.json").write_text("{}")  # what makes a folder an exported one
    with pytest.raises(InferenceError, match="is no exported folder that can be read"):
        detect([str(images)], tmp_path, tmp_path / "out")


def test_an_emulated_precision_is_one_line_on_stderr(digits_folder, images, monkeypatch, capsys):
    monkeypatch.setattr(precision, "_cpu_is_native", lambda dtype: dtype == torch.float32)
    command = ["classify", str(images / "011.png"), "--model", str(digits_folder), "--dtype"]
    for dtype, lines in [("bfloat16", 1), ("auto", 0)]:
        assert main([*command, dtype]) == 0
        assert capsys.readouterr().err.count("hgnetv2-hf: This processor does not compute bfloat16") == lines


@pytest.mark.slow
def test_compiled_says_the_same_in_batches_of_one_size(digits_folder, images, tmp_path):
    for compile in (False, True):
        classify([str(images)], digits_folder, tmp_path / f"{compile}.csv", compile=compile, batch_size=8, show=str)
    assert [row["label_1"] for row in rows(tmp_path / "True.csv")] == [
        row["label_1"] for row in rows(tmp_path / "False.csv")
    ]


@pytest.fixture
def not_utf8(tmp_path):
    """An image whose name is no UTF-8, and one whose name looks like the other's in a table."""
    names = [os.fsencode(tmp_path) + name for name in (b"/caf\xe9.png", b"/caf%E9.png", b"/caf\\xe9.png")]
    for name in names:
        digits.load_held_out()[0][0].save(tmp_path / "image.png")
        os.rename(tmp_path / "image.png", name)
    return [os.fsdecode(name) for name in names]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_names_that_are_not_text_are_rows_too(digits_folder, not_utf8, tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="comes with the extra [parquet]")
    table = tmp_path / f"out.{suffix}"
    assert classify(not_utf8, digits_folder, table, show=str)["unreadable"] == 0
    if suffix == "parquet":
        found = importlib.import_module("pyarrow.parquet").read_table(table).to_pylist()
    else:
        found = (
            rows(table) if suffix == "csv" else [json.loads(line) for line in table.read_text("utf-8").splitlines()]
        )
    shown = [row["image"] for row in found]
    assert shown == [f"file://{tmp_path}/caf%E9.png", *not_utf8[1:]]
    assert os.fsdecode(urllib.parse.unquote_to_bytes(shown[0].removeprefix("file://"))) == not_utf8[0]


def test_names_that_are_not_text_are_printed_and_resumed(digits_folder, not_utf8, tmp_path):
    command = [sys.executable, "-m", "hgnetv2_hf.cli", "classify", *not_utf8, "--model", str(digits_folder)]
    run = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"})
    assert run.returncode == 0 and b"/caf%E9.png: " in run.stdout + run.stderr, run.stderr[-2000:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hgnetv2_hf.inference.classify._write_table", lambda *_: sys.exit(1))
        with pytest.raises(SystemExit):
            classify(not_utf8, digits_folder, tmp_path / "out.csv", show=str)
    assert classify(not_utf8, digits_folder, tmp_path / "out.csv", show=str)["resumed"] == len(not_utf8)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_files(digits_folder, tmp_path):
    image = tmp_path / "images"
    image.mkdir()
    PIL.Image.effect_noise((300, 300), 50).convert("RGB").save(image / "0.jpg")
    for index in range(1, 3000):
        os.link(image / "0.jpg", image / f"{index}.jpg")
    code = """
import sys, hgnetv2_hf
from hgnetv2_hf.inference.classify import classify
from hgnetv2_hf.inference.detect import detect
from hgnetv2_hf.benchmark.memory import peak_memory
classify([sys.argv[1] + "/1*.jpg"], sys.argv[2], sys.argv[3] + "/a.csv", show=str)
before = peak_memory()
classify([sys.argv[1]], sys.argv[2], sys.argv[3] + "/b.csv", show=str)
print(peak_memory() - before)
"""
    run = [sys.executable, "-c", code, str(image), str(digits_folder), str(tmp_path)]
    added = int(subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert added < 30e6  # 3,000 decoded images are 800 MB
    assert len(rows(tmp_path / "b.csv")) == 3000


def test_labels_follow_the_problem_type():
    from hgnetv2_hf.inference.runtime import top_labels

    config = hgnetv2_hf.HGNetV2Config(num_labels=3)
    logits = torch.tensor([1.0, 2.0, -1.0])
    best = top_labels(logits, config, 2)
    assert [each["label"] for each in best] == ["LABEL_1", "LABEL_0"]
    assert np.isclose(best[0]["score"], torch.softmax(logits, 0)[1])
    config.problem_type = "multi_label_classification"
    assert np.isclose(top_labels(logits, config, 1)[0]["score"], torch.sigmoid(logits)[1])


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"top_k": 0}, {"top_k": -1}])
def test_no_images_per_call_and_no_labels_are_refused(digits_folder, images, wrong):
    with pytest.raises(InferenceError, match="expected a positive whole number"):
        classify([str(images)], digits_folder, **wrong)


def test_a_damaged_journal_starts_anew(digits_folder, images, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("hgnetv2_hf.inference.classify._write_table", lambda *_: sys.exit(1))
        with pytest.raises(SystemExit):
            classify([str(images)], digits_folder, tmp_path / "out.csv", show=str)
    (journal,) = tmp_path.glob(".out.csv.*.partial.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:3], b"\xff" + lines[3], *lines[4:]]))
    assert classify([str(images)], digits_folder, tmp_path / "out.csv", show=str)["resumed"] == 3
