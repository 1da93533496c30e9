"""What acts on a classifier acts on PP-HGNet: folding, export, and the commands."""

import csv

import numpy as np
import pytest
import torch
from conftest import TINY_PP_HGNET_FIELDS, randomize, relative_difference
from transformers import AutoModelForImageClassification

import hgnetv2_hf
from hgnetv2_hf.cli import main
from hgnetv2_hf.inference.folding import FoldedConvLayer


@pytest.fixture
def model():
    config = hgnetv2_hf.PPHGNetConfig(
        **{**TINY_PP_HGNET_FIELDS, "stage_num_blocks": [1, 1, 2, 2]}, class_expand=24, num_labels=3, dropout_prob=0.2
    )
    return randomize(hgnetv2_hf.PPHGNetForImageClassification(config)).eval()


@pytest.fixture
def folder(tmp_path):
    """A classifier of the four classes that the scans have."""
    config = hgnetv2_hf.PPHGNetConfig(
        **TINY_PP_HGNET_FIELDS,
        class_expand=24,
        id2label=dict(enumerate("0123")),
        label2id={str(index): index for index in range(4)},
    )
    randomize(hgnetv2_hf.PPHGNetForImageClassification(config)).save_pretrained(tmp_path / "model")
    hgnetv2_hf.HGNetV2ImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_folded_pp_hgnet_computes_the_same(model, dtype, tolerance):
    model = model.to(dtype)
    optimized = hgnetv2_hf.optimize_for_inference(model)
    assert not [module for module in optimized.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    attentions = sum(model.config.stage_num_blocks)
    assert sum(isinstance(module, torch.nn.Conv2d) for module in optimized.modules()) == attentions
    assert any(isinstance(module, FoldedConvLayer) for module in optimized.modules())
    pixel_values = torch.randn(2, 3, 64, 81, dtype=dtype)
    with torch.inference_mode():
        assert relative_difference(optimized(pixel_values).logits, model(pixel_values).logits) < tolerance


def test_drop_path_freezing_rates_and_heat_maps_find_its_stages(model):
    from hgnetv2_hf.training import freeze, parameter_groups

    assert hgnetv2_hf.grad_cam(model, torch.rand(2, 3, 64, 64), layer="stage3").shape == (2, 64, 64)
    assert hgnetv2_hf.set_drop_path_rate(model, 0.1) == 2
    rates = {
        group["name"]: group["lr"] for group in parameter_groups(model, 1.0, lr_mult_list=[0, 0.1, 0.2, 0.3, 0.4])
    }
    assert rates["stem weights"] == 0 and rates["stage3 biases"] == 0.3 and rates["rest weights"] == 1
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert freeze(model, freeze_at=0, freeze_norm=True).batch_norms == len(norms) > 0


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_exported_pp_hgnet_answers_as_the_model_does(folder, tmp_path, format):
    for module in ("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ("openvino",):
        pytest.importorskip(module, reason=f"comes with the extra [{format}]")
    assert main(["export", str(folder), str(tmp_path / "out"), "--format", format]) == 0
    exported = hgnetv2_hf.load_exported(tmp_path / "out")
    pixel_values = np.random.RandomState(0).normal(size=(2, 3, 32, 32)).astype("float32")
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = model(torch.from_numpy(pixel_values)).logits
    assert relative_difference(exported.run(pixel_values)["logits"], expected) < 1e-4


def test_classify_embed_and_evaluate_take_its_folder(folder, scans, tmp_path, capsys):
    table = tmp_path / "rows.csv"
    assert main(["classify", str(scans / "val" / "0"), "--model", str(folder), "--output", str(table)]) == 0
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 6 and not any(row["error"] for row in rows)
    metrics = hgnetv2_hf.evaluate(str(folder), str(scans), show=str)
    assert metrics["images"] == 24
    pytest.importorskip("pyarrow", reason="comes with the extra [parquet]")
    assert main(["embed", str(scans / "val"), "--model", str(folder), "--output", str(tmp_path / "features")]) == 0
    assert "features of 24 images, 40 numbers each" in capsys.readouterr().out


@pytest.mark.slow
def test_it_is_trained_from_its_folder_and_from_a_variants_name(folder, scans, tmp_path):
    from small_trainings import quick

    trained = quick(scans, folder, tmp_path / "trained", max_steps=2)
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path / "trained")).__name__ == (
        "PPHGNetForImageClassification"
    )
    assert "pp-hgnet" in (tmp_path / "trained" / "README.md").read_text() and trained.metrics["steps"] == 2
    quick(scans, "tiny", tmp_path / "fresh", max_steps=1)
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "fresh").config.stem_channels == [3, 48, 48, 96]
