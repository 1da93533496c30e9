"""`export` for LiteRT, ncnn and Core ML: one image of one size. The first two run here, as the model does."""

import json

import numpy as np
import pytest
import torch
import transformers

from hgnetv2_hf import (
    HGNetV2Backbone,
    HGNetV2Config,
    HGNetV2ImageProcessor,
    PPHGNetV2Config,
    PPHGNetV2ForImageClassification,
)
from hgnetv2_hf.errors import ExportError, InferenceError
from hgnetv2_hf.inference.export import TOLERANCE, export_model
from hgnetv2_hf.inference.runtime import load_exported


MODULES = {"litert": ("litert_torch", "ai_edge_litert"), "ncnn": ("pnnx", "ncnn"), "coreml": ("coremltools",)}
RUN_HERE = ("litert", "ncnn")


@pytest.fixture(params=MODULES)
def format(request):
    for module in MODULES[request.param]:
        pytest.importorskip(module, reason=f"comes with the extra [{request.param}]")
    return request.param


@pytest.mark.slow
def test_the_digits_are_classified_as_by_the_model(digits_folder, tmp_path, format):
    report = export_model(digits_folder, tmp_path / "out", format)
    assert "1 images of 32×32" in str(report) and report.size > 100_000
    if format not in RUN_HERE:
        assert report.difference is None and "not compared: it runs in Core ML" in str(report)
        with pytest.raises(InferenceError, match="is for Core ML on Apple's systems"):
            load_exported(tmp_path / "out")
        return
    assert report.difference < TOLERANCE
    exported = load_exported(tmp_path / "out", threads=1)
    model = transformers.AutoModelForImageClassification.from_pretrained(digits_folder).eval()
    pixels = torch.randn(5, 3, 32, 32)  # the graph takes one at a time
    with torch.no_grad():
        expected = model(pixels).logits
    got = exported.run(pixels)["logits"]
    assert np.abs(got - expected.numpy()).max() < TOLERANCE * expected.abs().max()
    with pytest.raises(ValueError, match="takes images of 32×32 only"):
        exported.run(torch.randn(1, 3, 64, 64))


@pytest.mark.slow
def test_clamps_and_a_padding_of_minus_infinity_arrive(tmp_path, tiny_fields, format):
    """ncnn reads no infinity, nor float32's largest number."""
    from conftest import with_lab_of_both_signs

    torch.manual_seed(0)
    model = with_lab_of_both_signs(PPHGNetV2ForImageClassification(PPHGNetV2Config(**tiny_fields, num_labels=5)))
    model.eval().save_pretrained(tmp_path / "model")
    HGNetV2ImageProcessor(crop_size={"height": 64, "width": 96}).save_pretrained(tmp_path / "model")
    report = export_model(tmp_path / "model", tmp_path / "out", format, image_size=(64, 96))
    assert format not in RUN_HERE or report.difference < TOLERANCE


@pytest.mark.slow
def test_a_backbone_needs_a_size(tmp_path, tiny_fields, format):
    HGNetV2Backbone(HGNetV2Config(**tiny_fields, out_features=["stage2", "stage4"])).save_pretrained(
        tmp_path / "model"
    )
    with pytest.raises(ExportError, match="say which with --image-size H W"):
        export_model(tmp_path / "model", tmp_path / "out", format)
    report = export_model(tmp_path / "model", tmp_path / "out", format, image_size=(64, 64))
    assert report.outputs == ["stage2", "stage4"]
    assert json.loads((tmp_path / "out" / "export.json").read_text())["shapes"]["image_size"] == [64, 64]
    assert format not in RUN_HERE or report.difference < TOLERANCE


def test_detectors_and_lower_precisions_are_refused(detector, digits_folder, tmp_path, format):
    with pytest.raises(ExportError, match="does not take a detector's decoder"):
        export_model(detector, tmp_path / "out", format)
    with pytest.raises(ExportError, match="is made for onnx, openvino and transformers-js"):
        export_model(digits_folder, tmp_path / "out", format, half=True)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_said(digits_folder, tmp_path, format):
    if format not in RUN_HERE:
        pytest.skip("not run here")
    export_model(digits_folder, tmp_path / "out", format)
    file = next(path for path in (tmp_path / "out").iterdir() if path.name in ("model.tflite", "model.ncnn.bin"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InferenceError, match="cannot be loaded"):
        load_exported(tmp_path / "out")
