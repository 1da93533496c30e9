"""`embed`: the features of the plain model, row by row, whatever interrupts it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from conftest import write_pictures

import hgnetv2_hf
from hgnetv2_hf.cli import main
from hgnetv2_hf.errors import InferenceError
from hgnetv2_hf.files import parts
from hgnetv2_hf.inference.embed import embed


pytest.importorskip("pyarrow", reason="comes with the extra [parquet]")
from pyarrow import parquet  # noqa: E402


STORED = ("float32", "float16")


@pytest.fixture
def photos(tmp_path):
    """Twelve pictures, one of them broken, one whose name is no UTF-8."""
    folder = tmp_path / "photos"
    write_pictures(folder, 12, broken=4)
    (folder / "11.png").rename(os.fsdecode(os.fsencode(folder) + b"/z\xff.png"))
    return folder


def read(folder):
    return parquet.read_table(folder).to_pylist()


def vectors(folder):
    return np.array([row["features"] for row in read(folder) if row["features"]])


def plain(model, files):
    network = transformers.AutoModel.from_pretrained(model).eval().double()
    processor = transformers.AutoImageProcessor.from_pretrained(model)
    images = [PIL.Image.open(file).convert("RGB") for file in files]
    with torch.inference_mode():
        return network(processor(images, return_tensors="pt")["pixel_values"].double()).pooler_output.numpy()


def test_rows_are_the_plain_models_features_in_order(digits_folder, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "ROWS_PER_PART", 5)
    summary = embed([str(photos)], digits_folder, tmp_path / "out", batch_size=4, show=str)
    assert (summary["images"], summary["unreadable"], summary["width"]) == (12, 1, 128)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "_embeddings.json", "part-00000.parquet", "part-00001.parquet", "part-00002.parquet",
    ]  # fmt: skip
    rows, files = read(tmp_path / "out"), sorted(photos.iterdir())
    assert [row["image"] for row in rows[:11]] == [str(file) for file in files[:11]]
    assert rows[11]["image"].startswith("file://") and rows[11]["image"].endswith("z%FF.png")
    assert rows[4]["error"] and rows[4]["features"] is None and rows[4]["sha256"] is None
    good = [index for index in range(12) if index != 4]
    for index in good:
        assert rows[index]["error"] is None
        assert rows[index]["sha256"] == hashlib.sha256(files[index].read_bytes()).hexdigest()
    found, expected = vectors(tmp_path / "out"), plain(digits_folder, [files[index] for index in good])
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_features_in_half_take_half_the_space(digits_folder, photos, tmp_path):
    for stored in STORED:
        embed([str(photos)], digits_folder, tmp_path / stored, stored_dtype=stored, show=str)
    types = [parquet.read_schema(tmp_path / each / "part-00000.parquet").field("features").type for each in STORED]
    assert [str(each.value_type) for each in types] == ["float", "halffloat"] and types[1].list_size == 128
    full, half = (vectors(tmp_path / each) for each in STORED)
    assert (full.astype("float16") == half.astype("float16")).all()


def test_an_exported_backbone_gives_the_same(digits_folder, photos, tmp_path):
    pytest.importorskip("onnxruntime", reason="comes with the extra [onnx]")
    hgnetv2_hf.load_backbone(digits_folder, out_features=["stage2", "stage4"]).save_pretrained(tmp_path / "backbone")
    transformers.AutoImageProcessor.from_pretrained(digits_folder).save_pretrained(tmp_path / "backbone")
    hgnetv2_hf.export_model(tmp_path / "backbone", tmp_path / "onnx", "onnx")
    for name, model in (("torch", tmp_path / "backbone"), ("onnx", tmp_path / "onnx")):
        embed([str(photos)], model, tmp_path / f"out-{name}", show=str)
    one, other = (vectors(tmp_path / f"out-{name}") for name in ("torch", "onnx"))
    assert np.abs(one - other).max() <= 1e-5 * np.abs(one).max()


@pytest.mark.parametrize("changed", [False, True])
def test_a_killed_run_continues_after_its_last_whole_file(digits_folder, photos, tmp_path, monkeypatch, changed):
    monkeypatch.setattr(parts, "ROWS_PER_PART", 3)
    put = parts.put

    def dies_at_the_third(folder, name, content):
        if name == "part-00002.parquet":
            put(folder, "part-00002.partial", content[:100])
            raise KeyboardInterrupt
        put(folder, name, content)

    monkeypatch.setattr(parts, "put", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        embed([str(photos)], digits_folder, tmp_path / "out", show=str)
    assert not (tmp_path / "out").exists()
    if changed:  # an image of the second file
        os.utime(photos / "03.png", (1, 1))
    monkeypatch.setattr(parts, "put", put)
    summary = embed([str(photos)], digits_folder, tmp_path / "out", show=str)
    assert summary["resumed"] == (3 if changed else 6)
    embed([str(photos)], digits_folder, tmp_path / "whole", show=str)
    assert read(tmp_path / "out") == read(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos", "whole"]


@pytest.mark.slow
def test_a_process_killed_at_any_moment_loses_nothing(digits_folder, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    PIL.Image.fromarray(np.random.RandomState(0).randint(0, 256, (32, 32, 3), dtype="uint8")).save(folder / "0.png")
    for index in range(1, 3000):
        os.link(folder / "0.png", folder / f"{index}.png")
    code = "import sys; from hgnetv2_hf.cli import main; from hgnetv2_hf.files import parts"
    code += "; parts.ROWS_PER_PART = 256; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "embed", str(folder)]
    command += ["--model", str(digits_folder), "--output", str(tmp_path / "out")]
    kills = 0
    while not (tmp_path / "out").exists():
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if kills < 3:
            deadline = time.time() + 120
            files = kills + 1
            while time.time() < deadline and process.poll() is None:
                if len(list(tmp_path.glob(".out.*.unfinished/part-*.parquet"))) >= files:
                    break
                time.sleep(0.02)
            process.kill()
            kills += 1
        assert process.wait(600) in (0, -9)
    rows = read(tmp_path / "out")
    assert kills and [row["image"] for row in rows] == sorted(str(path) for path in folder.iterdir())
    assert len({json.dumps(row["features"]) for row in rows}) == 1


@pytest.mark.parametrize(
    "options, words",
    [
        ({"paths": ["nowhere"]}, "There is no image nowhere"),
        ({"model": "nowhere"}, "There is no folder nowhere"),
        ({"stored_dtype": "int8"}, "float32 or float16, not int8"),
        ({"dtype": "float99"}, "Unsupported dtype float99"),
        ({"batch_size": 0}, "Unsupported batch_size 0"),
        ({"device": "cuda:99"}, "cannot be loaded"),
    ],
)
def test_bad_requests_get_one_sentence_and_leave_nothing(digits_folder, photos, tmp_path, options, words):
    with pytest.raises(InferenceError, match=words):
        embed(**{"paths": [str(photos)], "model": digits_folder, "output_dir": tmp_path / "out", **options})
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_detectors_and_exported_classifiers_are_refused(detector, digits_folder, photos, tmp_path):
    with pytest.raises(InferenceError, match="no classifier or backbone of HGNetV2"):
        embed([str(photos)], detector, tmp_path / "out")
    pytest.importorskip("onnxruntime", reason="comes with the extra [onnx]")
    hgnetv2_hf.export_model(digits_folder, tmp_path / "onnx", "onnx")
    with pytest.raises(InferenceError, match="gives logits, no features"):
        embed([str(photos)], tmp_path / "onnx", tmp_path / "out")


def test_the_model_and_the_images_are_not_replaced(digits_folder, photos, tmp_path):
    shutil.copytree(digits_folder, tmp_path / "model")
    with pytest.raises(InferenceError, match="lies in the model's folder"):
        embed([str(photos)], tmp_path / "model", tmp_path / "model" / "vectors")
    (tmp_path / "_embeddings.json").write_text("{}")
    with pytest.raises(InferenceError, match="contains the source"):
        embed([str(photos)], tmp_path / "model", tmp_path, overwrite=True)
    assert (photos / "00.png").is_file()


def test_a_truncated_model_is_one_sentence(digits_folder, photos, tmp_path, capsys):
    shutil.copytree(digits_folder, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for command in ("classify", "embed", "explain"):
        output = str(tmp_path / ("out.csv" if command == "classify" else "out"))
        assert main([command, str(photos), "--model", str(tmp_path / "model"), "--output", output]) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hgnetv2-hf:")]
        assert "loaded" in line and "header" in line


def test_several_processes_of_a_launcher_are_refused(digits_folder, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InferenceError, match="several share the images by --engine ray"):
        embed([str(photos)], digits_folder, tmp_path / "out")


def test_the_command(digits_folder, photos, tmp_path, capsys):
    command = ["embed", str(photos), "--model", str(digits_folder), "--output", str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "features of 11 images, 128 numbers each" in printed and "1 image could not be read" in printed
    assert main(command) == 1 and "exists already" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--stored-dtype", "float16"]) == 0
    about = json.loads((tmp_path / "out" / "_embeddings.json").read_text())
    assert (about["images"], about["unreadable"], about["stored_dtype"]) == (12, 1, "float16")
