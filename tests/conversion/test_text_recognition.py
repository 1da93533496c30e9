"""Backbones of PaddleOCR's server networks: the strides that reading lines needs, against PaddleX's own code."""

import json

import numpy as np
import pytest
import torch
from conftest import GOLDENS, relative_difference
from goldens import filler

import hgnetv2_hf
from hgnetv2_hf import ConversionError, convert_checkpoint, load_backbone
from hgnetv2_hf.conversion.paddle_file import write_paddle_file
from hgnetv2_hf.hub.published import PADDLEX_URL, PUBLISHED


MANIFEST = json.loads((GOLDENS / "paddlex_ocr.json").read_text())
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def tensors(kind):
    return {name: torch.from_numpy(value) for name, value in filler.state_dict(MANIFEST[kind]).items()}


def write(kind, path):
    write_paddle_file(tensors(kind), path)
    return path


@pytest.mark.parametrize("kind", ["rec", "det"])
def test_maps_are_those_of_paddlex(tmp_path, kind):
    report = convert_checkpoint(write(kind, tmp_path / "w.pdparams"), tmp_path / "out", task="backbone")
    assert report.layout == "paddledetection" and "2 tensors" in report.left_out[0]
    assert report.model_type == ("pp_hgnet_v2" if kind == "rec" else "hgnet_v2")
    assert ("recognition" in report.assumed["stem_strides"][1]) == (kind == "rec")
    backbone = load_backbone(tmp_path / "out", out_features=STAGES).double().eval()
    pixel_values = torch.from_numpy(np.random.RandomState(3).normal(size=(1, 3, 48, 80)).astype("float32")).double()
    with torch.inference_mode():
        maps = backbone(pixel_values).feature_maps
    golden = np.load(GOLDENS / "paddlex_ocr.npz")
    for index, ours in enumerate(maps):
        theirs = golden[f"{kind}_feature_{index}"]
        assert relative_difference(ours, theirs) < 1e-9


def test_a_recognition_network_needs_no_option_under_its_published_name(tmp_path):
    assert PUBLISHED["PP-OCRv5_server_rec"].url == PADDLEX_URL + "PP-OCRv5_server_rec_pretrained.pdparams"
    source = write("rec", tmp_path / "PP-OCRv5_server_rec_pretrained.pdparams")
    assert convert_checkpoint(source, tmp_path / "out").task == "backbone"
    with pytest.raises(ConversionError, match="--task backbone"):
        convert_checkpoint(write("rec", tmp_path / "mine.pdparams"), tmp_path / "other")


def test_it_fits_into_transformers_own_recognition_model(tmp_path):
    transformers = pytest.importorskip("transformers", minversion="5.4")
    if not hasattr(transformers, "PPOCRV5ServerRecConfig"):
        pytest.skip("this Transformers has no PP-OCRv5")
    convert_checkpoint(write("rec", tmp_path / "w.pdparams"), tmp_path / "out", task="backbone")
    own = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    own.out_features = STAGES
    config = transformers.PPOCRV5ServerRecConfig(backbone_config=own, head_out_channels=7)
    model = transformers.AutoModel.from_config(config).eval()
    loaded = hgnetv2_hf.load_backbone_into(model, tmp_path / "out")
    assert loaded.notes == []
    stock = transformers.PPOCRV5ServerRecConfig()
    strides = ("stem_strides", "stage_downsample_strides", "stage_downsample")
    assert all(list(getattr(own, name)) == list(getattr(stock.backbone_config, name)) for name in strides)
    with torch.inference_mode():
        ours = load_backbone(tmp_path / "out")(torch.ones(1, 3, 48, 96)).feature_maps[0]
        assert torch.equal(model.backbone(torch.ones(1, 3, 48, 96)).feature_maps[-1], ours)


def test_text_detection_of_ppocrv4_holds_a_pp_hgnet(tmp_path):
    config = hgnetv2_hf.PPHGNetConfig(
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8],
        stage_mid_channels=[8, 8],
        stage_out_channels=[8, 8],
        stage_num_blocks=[1, 1],
        stage_downsample=[False, True],
        stage_numb_of_layers=[1, 1],
    )
    backbone = hgnetv2_hf.PPHGNetBackbone(config).eval()
    backbone.save_pretrained(tmp_path / "ours")
    hgnetv2_hf.export_weights(tmp_path / "ours", tmp_path / "alone.pdparams")
    from hgnetv2_hf.conversion.weight_file import read_weights

    inside = {f"backbone.{name}": each for name, each in read_weights(tmp_path / "alone.pdparams")[0].items()}
    inside["head.binarize.conv1.weight"] = torch.ones(1)
    write_paddle_file(inside, tmp_path / "det.pdparams")
    report = convert_checkpoint(tmp_path / "det.pdparams", tmp_path / "out", task="backbone")
    assert report.model_type == "pp_hgnet"
    pixel_values = torch.ones(1, 3, 64, 64)
    with torch.inference_mode():
        again = load_backbone(tmp_path / "out")(pixel_values).feature_maps[0]
        assert torch.equal(again, backbone(pixel_values).feature_maps[0])
    inside["head.ctc_head.fc.weight"] = torch.ones(1)
    write_paddle_file(inside, tmp_path / "rec.pdparams")
    with pytest.raises(ConversionError, match="strides"):
        convert_checkpoint(tmp_path / "rec.pdparams", tmp_path / "rec", task="backbone")
    assert not (tmp_path / "rec").exists()


def test_a_network_that_reads_text_with_unknown_strides_is_refused(tmp_path):
    changed = {name: each for name, each in tensors("rec").items() if "stages.0.downsample" not in name}
    write_paddle_file(changed, tmp_path / "w.pdparams")
    with pytest.raises(ConversionError, match="strides are unknown"):
        convert_checkpoint(tmp_path / "w.pdparams", tmp_path / "out", task="backbone")
