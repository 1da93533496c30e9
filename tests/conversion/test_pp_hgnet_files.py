"""Files of PP-HGNet, in and out: PaddleClas's and timm's, and what is refused or assumed."""

import json

import pytest
import torch
from conftest import GOLDENS, TINY_FIELDS, TINY_PP_HGNET_FIELDS, randomize, relative_difference
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

import hgnetv2_hf
from hgnetv2_hf import ConversionError, convert_checkpoint, export_weights
from hgnetv2_hf.cli import main
from hgnetv2_hf.conversion.assumptions import OPTIONS, assume
from hgnetv2_hf.conversion.export import _differences
from hgnetv2_hf.conversion.layouts import LAYOUTS, PP_HGNET_LAYOUTS, is_counter, is_head, rename_back
from hgnetv2_hf.conversion.paddle_file import write_paddle_file
from hgnetv2_hf.conversion.source import Source
from hgnetv2_hf.conversion.weight_file import read_weights
from hgnetv2_hf.hub.published import PUBLISHED
from hgnetv2_hf.model.variants import PP_HGNET_VARIANTS, architecture_fields


NO_OPTIONS = dict.fromkeys(OPTIONS)


@pytest.fixture
def tiny():
    return build()


def build(**options):
    """A classifier of a few thousand weights."""
    config = hgnetv2_hf.PPHGNetConfig(**{**TINY_PP_HGNET_FIELDS, "class_expand": 24, "num_labels": 3, **options})
    return randomize(hgnetv2_hf.PPHGNetForImageClassification(config).eval())


def write_as(model, layout, folder, task="classification"):
    """The model's weights in a file as the program of ``layout`` writes it."""
    kept = {name: t for name, t in model.state_dict().items() if task == "classification" or not is_head(name)}
    tensors = rename_back(kept, PP_HGNET_LAYOUTS[layout])
    path = folder / (f"{layout}.pdparams" if layout == "paddleclas" else f"{layout}.safetensors")
    if layout == "paddleclas":
        write_paddle_file(tensors, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


@pytest.mark.parametrize("task", ["classification", "backbone"])
@pytest.mark.parametrize("layout", PP_HGNET_LAYOUTS)
def test_a_file_of_pp_hgnet_is_recognised_and_goes_back_bit_for_bit(tiny, tmp_path, layout, task):
    path = write_as(tiny, layout, tmp_path, task)
    report = convert_checkpoint(path, tmp_path / "out")
    assert (report.layout, report.task, report.model_type, report.variant) == (layout, task, "pp_hgnet", None)
    assert report.title == "PP-HGNet with its own widths" and "Transformers has no PP-HGNet" in str(report)
    written, (source, _) = load_file(tmp_path / "out" / "model.safetensors"), read_weights(path)
    back = rename_back(written, PP_HGNET_LAYOUTS[layout])
    assert set(back) == set(source) and all(torch.equal(back[name], tensor) for name, tensor in source.items())
    if layout != "transformers":
        export_weights(tmp_path / "out", tmp_path / f"again{path.suffix}", layout)
        again, _ = read_weights(tmp_path / f"again{path.suffix}")
        assert set(again) == set(source) and all(torch.equal(again[name], source[name]) for name in source)


@pytest.mark.parametrize("variant", ["tiny", "base"])
def test_names_and_shapes_are_those_of_paddleclas(variant):
    expected = json.loads((GOLDENS / f"paddleclas_hgnet_{variant}.json").read_text())["tensors"]
    with torch.device("meta"):
        model = hgnetv2_hf.PPHGNetForImageClassification(hgnetv2_hf.PPHGNetConfig.from_variant(variant))
        kept = {name: tensor for name, tensor in model.state_dict().items() if not is_counter(name)}
        tensors = rename_back({**kept}, PP_HGNET_LAYOUTS["paddleclas"])
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == expected


@pytest.mark.parametrize("layout", ["paddleclas", "timm", "transformers"])
def test_verify_runs_the_real_timm_on_pp_hgnet(timm, tiny, tmp_path, layout):
    report = convert_checkpoint(write_as(tiny, layout, tmp_path), tmp_path / "out", verify=True)
    (parity,) = [each for each in report.parity if each.program.startswith("timm")]
    assert parity.difference < 1e-9 and parity.compared == "5 feature maps and the logits"


@pytest.mark.paddle
def test_verify_runs_the_real_paddleclas_on_pp_hgnet(paddle, tmp_path):
    report = convert_checkpoint(
        write_as(build(dropout_prob=0.2), "paddleclas", tmp_path), tmp_path / "out", verify=True
    )
    assert report.parity[0].program.startswith("PaddleClas") and report.parity[0].difference < 1e-9
    other = build(stage_numb_of_layers=[2, 3, 2, 2])
    report = convert_checkpoint(write_as(other, "timm", tmp_path), tmp_path / "other", verify=True)
    assert any("cannot express stages with different numbers of layers" in each for each in report.not_checked)


@pytest.mark.slow
@pytest.mark.parametrize("variant", PP_HGNET_VARIANTS)
def test_timms_own_pp_hgnet_converts_exactly(timm, tmp_path, variant):
    torch.manual_seed(0)
    original = randomize(timm.create_model(f"hgnet_{variant}", num_classes=5).eval())
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    report = convert_checkpoint(tmp_path / "model.safetensors", tmp_path / "out")
    assert (report.variant, report.layout, report.task) == (variant, "timm", "classification")
    ours = AutoModelForImageClassification.from_pretrained(tmp_path / "out").double().eval()
    pixel_values = torch.randn(1, 3, 96, 113, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert relative_difference(ours(pixel_values).logits, original.double()(pixel_values)) < 1e-9


@pytest.mark.slow
def test_a_folder_of_timms_pp_hgnet_brings_its_preprocessing(timm, tmp_path):
    torch.manual_seed(0)
    original = randomize(timm.create_model("hgnet_tiny", num_classes=3).eval())
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    cfg = {"input_size": [3, 288, 288], "crop_pct": 1.0}
    config = {"architecture": "hgnet_tiny", "num_classes": 3, "pretrained_cfg": cfg}
    (tmp_path / "config.json").write_text(json.dumps(config))
    report = convert_checkpoint(tmp_path, tmp_path / "out", variant="tiny", verify=True)
    assert report.assumed["resize_short"] == (288, "config.json of timm")
    assert report.parity[0].program.startswith("timm") and report.parity[0].difference < 1e-9
    with pytest.raises(ConversionError, match="does not hold a small: its widths and depths are those of a tiny"):
        convert_checkpoint(tmp_path, tmp_path / "other", variant="small")


ASSUMED = {  # layout and variant: dropout and short side
    ("paddleclas", "tiny"): (0.0, 232),
    ("paddleclas", "small"): (0.0, 236),
    ("paddleclas", "base"): (0.2, 236),
    ("timm", "tiny"): (0.0, 232),
    ("timm", "base"): (0.0, 232),
}


@pytest.mark.parametrize("layout, variant", ASSUMED)
def test_what_no_tensor_shows_is_that_of_the_program_and_variant(layout, variant):
    fields = {**architecture_fields(variant), "num_channels": 3, "num_labels": 7, "use_last_conv": True}
    source = Source("any.name")
    assumed = assume(source, PP_HGNET_LAYOUTS[layout], "classification", fields, NO_OPTIONS)
    assert (assumed["dropout_prob"][0], assumed["resize_short"][0]) == ASSUMED[layout, variant]
    assert assumed["stem_strides"][0] == [2, 1, 1, 2] and "pool_padding" not in assumed
    chosen = assume(source, PP_HGNET_LAYOUTS[layout], "classification", fields, {**NO_OPTIONS, "dropout_prob": 0.1})
    assert chosen["dropout_prob"] == (0.1, "option")


def test_the_published_rows_have_the_preprocessing_of_their_configurations():
    sides = {
        name: row.resize_short
        for name, row in PUBLISHED.items()
        if row.variant in PP_HGNET_VARIANTS and row.task == "classification"
    }
    assert sides.pop("PPHGNet_small") == sides.pop("PPHGNet_small_ssld") == sides.pop("PPHGNet_base_ssld") == 236
    assert len(sides) == 7 and set(sides.values()) == {232}


def test_a_folder_keeps_epsilon_and_dropout_when_converted_again(tmp_path):
    build(batch_norm_eps=1e-5, dropout_prob=0.3, hidden_act="silu").save_pretrained(tmp_path / "first")
    report = convert_checkpoint(tmp_path / "first", tmp_path / "second", verify=True)
    assert report.assumed["batch_norm_eps"] == (1e-5, "the folder's own configuration")
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second"))
    assert all(first[name] == second[name] for name in ("batch_norm_eps", "dropout_prob", "hidden_act"))


def test_what_pp_hgnet_does_not_have_is_one_sentence(tiny, tmp_path, capsys):
    path = str(write_as(tiny, "paddleclas", tmp_path))
    tiny.save_pretrained(tmp_path / "folder")
    folder = str(tmp_path / "folder")
    capsys.readouterr()
    for command, status, words in (
        (["convert", path, str(tmp_path / "out"), "--pool-padding", "zero"], 1, "pads its max-pool in one way"),
        (
            ["convert", path, str(tmp_path / "out"), "--layout", "dfine"],
            1,
            "does not hold HGNetV2 weights in the layout",
        ),
        (["convert", path, str(tmp_path / "out"), "--layout", "paddledetection"], 1, "PaddleDetection"),
        (["convert", path, str(tmp_path / "out"), "--variant", "tiny"], 1, "none of the published variants"),
        (["convert", path, str(tmp_path / "out"), "--task", "detection"], 1, "holds no detector"),
        (
            ["export-weights", folder, str(tmp_path / "x.pth"), "--layout", "dfine"],
            1,
            "choose one of paddleclas, timm",
        ),
    ):
        assert main(command) == status
        error = capsys.readouterr().err.strip()
        assert words in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "x.pth").exists()


@pytest.mark.parametrize("name, words", [("att.conv.bias", "lacks"), ("stages.0.blocks.0.layers.1.bn._mean", "lacks")])
def test_a_missing_tensor_is_named(tiny, tmp_path, name, words):
    tensors, _ = read_weights(write_as(tiny, "paddleclas", tmp_path))
    gone = next(each for each in tensors if each.endswith(name))
    write_paddle_file({each: tensor for each, tensor in tensors.items() if each != gone}, tmp_path / "less.pdparams")
    with pytest.raises(ConversionError, match=words):
        convert_checkpoint(tmp_path / "less.pdparams", tmp_path / "out")


def test_both_networks_in_one_file_are_refused(tiny, tmp_path):
    other = hgnetv2_hf.PPHGNetV2ForImageClassification(hgnetv2_hf.PPHGNetV2Config(**TINY_FIELDS, class_expand=24))
    both = {
        **rename_back(other.state_dict(), LAYOUTS["timm"]),
        **rename_back(tiny.state_dict(), PP_HGNET_LAYOUTS["timm"]),
    }
    save_file({name: tensor.contiguous() for name, tensor in both.items()}, tmp_path / "both.safetensors")
    with pytest.raises(ConversionError, match="what this network does not have"):
        convert_checkpoint(tmp_path / "both.safetensors", tmp_path / "out")


def test_a_stray_name_of_the_other_network_changes_nothing(tmp_path):
    """A file is PP-HGNet's only with its signature, at its place."""
    config = hgnetv2_hf.PPHGNetV2Config(**TINY_FIELDS, class_expand=24)
    tensors = rename_back(hgnetv2_hf.PPHGNetV2ForImageClassification(config).state_dict(), LAYOUTS["timm"])
    for stray in ("neck.stem.0.conv.weight", "stem.stem.7.conv.weight"):
        save_file({**{n: t.contiguous() for n, t in tensors.items()}, stray: torch.ones(1)}, tmp_path / "stray")
        with pytest.raises(ConversionError, match=f"what this network does not have: .*{stray.split('.')[0][:2]}"):
            convert_checkpoint(tmp_path / "stray", tmp_path / "out", layout="timm")


def test_an_export_says_what_paddleclas_computes_otherwise(tmp_path):
    base, tiny = (hgnetv2_hf.PPHGNetConfig.from_variant(name) for name in ("base", "tiny"))
    assert _differences(base, True, "paddleclas") == _differences(tiny, True, "paddleclas") == []
    base.dropout_prob = 0.0  # as timm's file has it, and not PaddleClas's function
    assert "dropout_prob=0.0" in _differences(base, True, "paddleclas")[0]
    grey = hgnetv2_hf.PPHGNetConfig(**{**TINY_PP_HGNET_FIELDS, "stem_channels": [1, 8, 8], "num_channels": 1})
    with pytest.raises(ConversionError, match="PaddleClas cannot express images of 1 channels"):
        _differences(grey, True, "paddleclas")
    assert _differences(grey, True, "timm") == []


def test_a_backbone_says_which_network_the_other_has(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "folder")
    backbone = hgnetv2_hf.load_backbone(tmp_path / "folder", out_features=["stem", "stage4"])
    assert type(backbone) is hgnetv2_hf.PPHGNetBackbone and backbone.channels == [8, 40]
    other = hgnetv2_hf.HGNetV2Backbone(hgnetv2_hf.HGNetV2Config.from_variant("b0"))
    with pytest.raises(ValueError, match="holds no published variant, and the model has b0: they differ in stem_chan"):
        hgnetv2_hf.load_backbone_into(other, write_as(tiny, "timm", tmp_path))
