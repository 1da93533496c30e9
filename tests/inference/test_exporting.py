"""`export`: what other runtimes compute from the folded graph is what the model computes."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from conftest import relative_difference, slow_except, with_lab_of_both_signs
from scipy.optimize import linear_sum_assignment

import hgnetv2_hf
from hgnetv2_hf import HGNetV2Config, PPHGNetV2Config
from hgnetv2_hf.cli import main
from hgnetv2_hf.data import digits
from hgnetv2_hf.errors import ExportError, InferenceError
from hgnetv2_hf.inference import runtime as exported_module
from hgnetv2_hf.inference.export import TOLERANCE, export_model
from hgnetv2_hf.inference.precision import PrecisionWarning, is_native_in_openvino
from hgnetv2_hf.inference.runtime import load_exported, openvino_core


NAMES = ("logits", "pred_boxes")
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "executorch": "executorch"}


@pytest.fixture(params=RUNTIMES)
def format(request):
    for module in (RUNTIMES[request.param], *(["onnxscript"] if request.param == "onnx" else [])):
        pytest.importorskip(module, reason=f"comes with the extra [{request.param}]")
    return request.param


@pytest.fixture(scope="module")
def exported_digits(digits_folder, tmp_path_factory):
    """The digits in a format, exported once: path of the folder."""
    done = {}

    def export(format):
        if format not in done:
            done[format] = tmp_path_factory.mktemp("exported") / format
            assert main(["export", str(digits_folder), str(done[format]), "--format", format]) == 0
        return done[format]

    return export


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two hundred held-out scans as files: a folder to calibrate with."""
    folder = tmp_path_factory.mktemp("scans")
    for index, image in enumerate(digits.load_held_out()[0][:200]):
        image.save(folder / f"{index:03}.png")
    return folder


def save(model, folder):
    with_lab_of_both_signs(model).save_pretrained(folder)
    hgnetv2_hf.HGNetV2ImageProcessor(size=64, crop_size=64).save_pretrained(folder)
    return model


@pytest.mark.parametrize("format", slow_except(RUNTIMES, "onnx", "openvino"), indirect=True)
def test_a_classifier_runs_with_open_batch_and_size(tiny_fields, tmp_path, format):
    config = PPHGNetV2Config(**tiny_fields, num_labels=7, class_expand=24)
    model = save(hgnetv2_hf.PPHGNetV2ForImageClassification(config), tmp_path / "model")
    report = export_model(tmp_path / "model", tmp_path / "out", format)
    assert report.difference < TOLERANCE and report.outputs == ["logits"] and format in str(report)
    exported = load_exported(tmp_path / "out")
    for shape in [(1, 3, 64, 64), (5, 3, 96, 80), (2, 3, 65, 131), (11, 3, 64, 64)]:
        x = torch.randn(shape)
        with torch.no_grad():
            assert relative_difference(exported.run(x)["logits"], model(x).logits) < TOLERANCE
    with pytest.raises(ValueError, match="NaN"):
        exported.run(np.full((1, 3, 64, 64), np.nan))


@pytest.mark.slow
def test_a_backbone_gives_all_its_maps_by_name(tiny_fields, tmp_path, format):
    config = HGNetV2Config(**tiny_fields, out_features=["stem", "stage2", "stage4"])
    model = save(hgnetv2_hf.HGNetV2Backbone(config), tmp_path / "model")
    report = export_model(tmp_path / "model", tmp_path / "out", format)
    assert report.outputs == ["stem", "stage2", "stage4"]
    x = torch.randn(2, 3, 96, 64)
    maps = load_exported(tmp_path / "out").run(x)
    with torch.no_grad():
        for ours, theirs in zip(maps.values(), model(x).feature_maps):
            assert relative_difference(ours, theirs) < TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize("variant", ["b0", "b1", "b2", "b3", "b4", "b5", "b6"])
def test_every_variant_is_exact_in_openvino(tmp_path, variant):
    pytest.importorskip("openvino", reason="comes with the extra [openvino]")
    torch.manual_seed(0)
    save(hgnetv2_hf.PPHGNetV2ForImageClassification(PPHGNetV2Config.from_variant(variant)), tmp_path / "model")
    assert export_model(tmp_path / "model", tmp_path / "out", "openvino").difference < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["b3", "b4"])  # with LAB and without
def test_a_large_network_is_exact_everywhere(tmp_path, format, variant):
    torch.manual_seed(0)
    save(hgnetv2_hf.PPHGNetV2ForImageClassification(PPHGNetV2Config.from_variant(variant)), tmp_path / "model")
    assert export_model(tmp_path / "model", tmp_path / "out", format).difference < TOLERANCE


def test_the_exported_digits_answer_like_the_pipeline(digits_folder, exported_digits, format):
    images, labels = digits.load_held_out()
    classify = load_exported(exported_digits(format))
    expected = transformers.pipeline("image-classification", model=str(digits_folder), device="cpu")(images[:20])
    for ours, theirs in zip(classify(images[:20]), expected):
        assert [each["label"] for each in ours] == [each["label"] for each in theirs]
        assert np.allclose([each["score"] for each in ours], [each["score"] for each in theirs], atol=1e-5)
    assert classify(images[0], top_k=1)[0]["label"] == str(labels[0])
    batch = np.stack([np.asarray(image.convert("RGB")) for image in images[:3]])
    assert [best["label"] for (best,) in classify(batch, top_k=1)] == [str(label) for label in labels[:3]]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_int8_loses_at_most_one_point_on_the_digits(digits_folder, scans, tmp_path, format, capsys):
    for module in ("nncf", RUNTIMES[format], *(["onnxscript"] if format == "onnx" else [])):
        pytest.importorskip(module, reason="comes with the extras [int8,onnx,openvino]")
    command = ["export", str(digits_folder), str(tmp_path / "out"), "--format", format]
    assert main([*command, "--int8", "--calibration", str(scans)]) == 0
    assert "int8" in capsys.readouterr().out
    images, labels = digits.load_held_out()
    model = transformers.AutoModelForImageClassification.from_pretrained(digits_folder).eval()
    processor = hgnetv2_hf.HGNetV2ImageProcessor.from_pretrained(digits_folder)
    with torch.no_grad():
        float_labels = model(**processor(images, return_tensors="pt")).logits.argmax(-1).tolist()
    int8_labels = [int(best["label"]) for (best,) in load_exported(tmp_path / "out")(images, top_k=1)]
    accuracy = [np.mean(np.equal(each, labels)) for each in (float_labels, int8_labels)]
    print(f"\n{format}: {accuracy[0]:.2%} of {len(labels)} in float32, {accuracy[1]:.2%} in int8")
    assert accuracy[1] >= accuracy[0] - 0.01


def plain(folder):
    return transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()


def unlike(ours, theirs):
    """The largest relative distance between the queries of two detectors' outputs, paired one to one, per image."""
    ours, theirs = (np.concatenate([np.asarray(each[name]) for name in NAMES], -1) for each in (ours, theirs))
    distances = np.abs(ours[:, :, None] - theirs[:, None]).max(-1) / np.abs(theirs).max()
    return [distance[linear_sum_assignment(distance)].max() for distance in distances]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_detector_takes_any_number_of_images_of_any_size(detector, tmp_path, format, capsys):
    pytest.importorskip(RUNTIMES[format], reason=f"comes with the extra [{format}]")
    assert main(["export", str(detector), str(tmp_path / "out"), "--format", format, "--end-to-end"]) == 0
    assert "multiples of 32" in capsys.readouterr().out
    exported, model = (
        load_exported(tmp_path / "out"),
        transformers.AutoModelForObjectDetection.from_pretrained(detector),
    )
    for shape in [(1, 3, 64, 64), (3, 3, 96, 160), (2, 3, 224, 128)]:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert max(unlike(exported.run(x), model(x))) < TOLERANCE
    with pytest.raises(ValueError, match="multiples of 32"):
        exported.run(torch.zeros(1, 3, 80, 64))
    image = PIL.Image.radial_gradient("L").convert("RGB").resize((90, 70))
    pipe = transformers.pipeline("object-detection", model=str(detector), device="cpu")
    for ours, theirs in zip(exported([image, image.rotate(90)], threshold=0.3)[0], pipe(image, threshold=0.3)):
        assert ours["label"] == theirs["label"] and abs(ours["score"] - theirs["score"]) < 1e-4
        assert all(abs(ours["box"][side] - theirs["box"][side]) <= 1 for side in theirs["box"])
    pixels = exported.image_processor(image, return_tensors="pt")["pixel_values"]
    whole = load_exported(tmp_path / "out", end_to_end=True).run(pixels, [[70, 90]])
    with pytest.raises(ValueError, match="`sizes`"):
        load_exported(tmp_path / "out", end_to_end=True).run(pixels)
    for row, each in enumerate(exported(image, threshold=0.3)):
        assert model.config.id2label[int(whole["labels"][0, row])] == each["label"]
        assert whole["boxes"][0, row] == pytest.approx(list(each["box"].values()), abs=0.01)


def test_a_fixed_size_and_batch_take_any_number_of_images(detector, tmp_path):
    pytest.importorskip("openvino", reason="comes with the extra [openvino]")
    report = export_model(detector, tmp_path / "out", "openvino", batch_size=2, image_size=(96, 128))
    assert "2 images of 96×128" in str(report)
    exported, model = (
        load_exported(tmp_path / "out"),
        transformers.AutoModelForObjectDetection.from_pretrained(detector),
    )
    assert exported.image_processor.size == {"height": 96, "width": 128}
    x = torch.randn(3, 3, 96, 128, generator=torch.Generator().manual_seed(0))  # others may have queries that tie
    with torch.no_grad():
        assert max(unlike(exported.run(x), model(x))) < TOLERANCE
    with pytest.raises(ValueError, match="takes images of 96×128 only"):
        exported.run(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ExportError, match="multiples of 32"):
        export_model(detector, tmp_path / "other", "openvino", image_size=(100, 128))


def test_one_exported_model_answers_eight_threads_rightly(exported_digits, format):
    exported = load_exported(exported_digits(format))
    inputs = [torch.randn(1 + index % 3, 3, 32, 32) for index in range(24)]
    expected = [exported.run(each)["logits"] for each in inputs]
    with ThreadPoolExecutor(8) as pool:
        for got, right in zip(pool.map(exported.run, inputs), expected):
            assert np.allclose(got["logits"], right, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "format, options",
    [
        ("onnx", {"half": True}),
        pytest.param("openvino", {"half": True}, marks=pytest.mark.long),
        pytest.param("onnx", {"int8": True}, marks=pytest.mark.long),
        ("openvino", {"int8": True}),
    ],
)
def test_a_detector_in_a_lower_precision_finds_nearly_the_same(detector, scans, tmp_path, format, options):
    for module in (RUNTIMES[format], *(["nncf"] if "int8" in options else [])):
        pytest.importorskip(module, reason="comes with an extra")
    calibration = str(scans) if "int8" in options else None
    report = export_model(detector, tmp_path / "out", format, calibration=calibration, end_to_end=True, **options)
    # The head of this one tells apart what random weights find nearly equal, so roundings are large in it; AP of a
    # trained one is compared in `training/test_train_detector.py`.
    assert report.difference < (0.05 if "half" in options else 0.6) and "median" in str(report)


@pytest.mark.slow
@pytest.mark.parametrize(
    "golden", slow_except(["dfine_n", "rtdetrv2_hgnetv2_l", "deim_dfine_n", "deimv2_n"], "dfine_n", mark="long")
)
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_published_detector_finds_the_same_at_every_size(converted_golden, tmp_path, golden, format):
    """Compared by the export itself, at two batch sizes and three sizes, two of them no squares."""
    pytest.importorskip(RUNTIMES[format], reason=f"comes with the extra [{format}]")
    report = export_model(converted_golden(golden), tmp_path / "out", format)
    print(f"{golden}, {format}: {report.difference:.1e}")
    assert report.outputs == list(NAMES) and report.difference < TOLERANCE


def test_the_folder_carries_labels_preprocessing_and_what_runs_it(digits_folder, exported_digits):
    pytest.importorskip("openvino", reason="comes with the extra [openvino]")
    folder = exported_digits("openvino")
    assert {"config.json", "preprocessor_config.json", "model.xml", "model.bin", "export.json"} <= {
        file.name for file in folder.iterdir()
    }
    assert json.loads((folder / "config.json").read_text())["id2label"]["3"] == "3"
    with pytest.raises(ExportError, match="exists already"):
        export_model(digits_folder, folder, "openvino")
    export_model(digits_folder, folder, "openvino", overwrite=True)


@pytest.mark.slow
def test_signals_are_handled_after_openvino_models_are_gone(exported_digits):
    """Ctrl-C, or the end of a worker: OpenVINO gives the thread a signal stack, and must not take it away."""
    pytest.importorskip("openvino", reason="comes with the extra [openvino]")
    code = (
        "import os, signal, sys\nfrom hgnetv2_hf.inference.runtime import load_exported\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled'))\n"
        "one, two = (load_exported(sys.argv[1]) for _ in range(2))\ndel one\ndel two\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, exported_digits("openvino")], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "handled\n"), run.stderr[-2000:]


@pytest.mark.parametrize("native", [True, False])
def test_an_export_says_what_openvino_computes_in(exported_digits, monkeypatch, native):
    pytest.importorskip("openvino", reason="comes with the extra [openvino]")
    folder, x = exported_digits("openvino"), torch.randn(1, 3, 32, 32)
    if native and not is_native_in_openvino(torch.bfloat16, openvino_core()):
        pytest.skip("this processor has no bfloat16")
    monkeypatch.setattr(exported_module, "is_native_in_openvino", lambda dtype, core: native)
    with contextlib.nullcontext() if native else pytest.warns(PrecisionWarning, match="runs in float32"):
        asked = load_exported(folder, dtype="bfloat16")
    computed = "bfloat16" if native else "float32"
    assert asked.dtype == load_exported(folder, dtype="auto").dtype == computed
    exact = load_exported(folder)
    assert exact.dtype == "float32"
    assert np.array_equal(asked.run(x)["logits"], exact.run(x)["logits"]) == (not native)


def test_bad_requests_get_one_sentence_and_leave_nothing(digits_folder, tiny_fields, tmp_path, capsys):
    pytest.importorskip("openvino", reason="comes with the extra [openvino]")
    hgnetv2_hf.HGNetV2Config(**tiny_fields).save_pretrained(tmp_path / "no_weights")
    broken = shutil.copytree(digits_folder, tmp_path / "not_finite")
    model = transformers.AutoModelForImageClassification.from_pretrained(broken)
    with torch.no_grad():
        model.last_conv.weight[0] = float("nan")
    model.save_pretrained(broken)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "image.png").write_bytes(b"no image")
    int8 = ["--int8", "--calibration"]
    for source, options, message in [
        (tmp_path / "nowhere", [], "cannot be loaded|no model"),
        (tmp_path / "no_weights", [], "is no model|which is no"),
        (broken, [], "NaN"),
        (digits_folder, ["--int8"], "belong together"),
        (digits_folder, ["--calibration", str(tmp_path / "bad")], "belong together"),
        (digits_folder, [*int8, str(tmp_path / "empty")], "no image|nncf"),
        (digits_folder, [*int8, str(tmp_path / "bad")], "can be read|nncf"),
    ]:
        assert main(["export", str(source), str(tmp_path / "out"), "--format", "openvino", *options]) == 1
        error = capsys.readouterr().err
        assert re.search(message, error.splitlines()[-1]), error
        assert not (tmp_path / "out").exists()
    with pytest.raises(InferenceError, match="no model"):
        load_exported(digits_folder)


def test_a_damaged_export_gets_one_sentence(exported_digits, tmp_path, format):
    shutil.copytree(exported_digits(format), tmp_path / "out")
    for file in (tmp_path / "out").rglob("model.*"):
        if file.suffix in (".onnx", ".xml", ".pte"):
            file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InferenceError, match="cannot be loaded"):
        load_exported(tmp_path / "out")
