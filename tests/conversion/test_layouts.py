"""Every layout in and out: outputs of the original programs, the proof that `verify` gives, and the way back."""

import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDENS, golden_input, randomize, relative_difference
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, pipeline

import hgnetv2_hf
from hgnetv2_hf import ConversionError, convert_checkpoint, export_weights
from hgnetv2_hf.cli import main
from hgnetv2_hf.cli.convert import LAYOUT_NAMES
from hgnetv2_hf.conversion import verification
from hgnetv2_hf.conversion.layouts import LAYOUTS, is_counter, is_head, rename, rename_back
from hgnetv2_hf.conversion.network import choose_model_type
from hgnetv2_hf.conversion.paddle_file import write_paddle_file
from hgnetv2_hf.conversion.weight_file import read_weights
from hgnetv2_hf.hub.published import ASSETS, PUBLISHED


DIGITS = ASSETS / PUBLISHED["digits"].file_name
SCRIPTS = Path(__file__).parents[2] / "conversion_scripts"
DETECTORS = {
    "dfine_n": ("dfine", "b0", ["stage3", "stage4"], 1e-9),
    "dfine_l": ("dfine", "b4", ["stage2", "stage3", "stage4"], 1e-9),
    "rtdetrv2_hgnetv2_l": ("rtdetrv2", "b4", ["stage2", "stage3", "stage4"], 1e-9),
    "paddledet_rtdetr_hgnetv2_l": ("paddledetection", "b4", ["stage2", "stage3", "stage4"], 1e-5),  # a float32 golden
}


@pytest.fixture
def tiny(tiny_fields):
    """A classifier with LAB, PaddleClas's head and counters that have counted."""
    config = hgnetv2_hf.PPHGNetV2Config(**tiny_fields, class_expand=24, num_labels=3)
    model = randomize(hgnetv2_hf.PPHGNetV2ForImageClassification(config).eval())
    for name, tensor in model.state_dict().items():
        if is_counter(name):
            tensor.fill_(1000)
    return model


def write_as(model, layout, folder, backbone=False):
    """The model's weights in a file as the program of ``layout`` writes it."""
    tensors = rename_back(model.state_dict(), LAYOUTS[layout])
    if backbone:
        tensors = {name: tensor for name, tensor in tensors.items() if not is_head(rename_one(name, layout))}
    if layout in ("paddleclas", "paddledetection"):
        path = folder / f"{layout}.pdparams"
        write_paddle_file(tensors, path)
    elif layout in ("timm", "transformers"):
        path = folder / f"{layout}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        path = folder / f"{layout}.pth"
        torch.save(tensors, path)
    return path


def rename_one(name, layout):
    return next(iter(rename({name: torch.zeros(())}, LAYOUTS[layout])))


def test_the_model_type_is_stocks_unless_stock_computes_something_else():
    lab, plain = {"use_learnable_affine_block": True}, {"use_learnable_affine_block": False}
    strides = {"stem_strides": ([2, 1, 1, 2, 1], ""), "stage_downsample_strides": ([2, 2, 2, 2], "")}
    assumed = {"hidden_act": ("relu", ""), **strides}
    same = {**assumed, "pool_padding": ("same", "")}
    for task, fields, values, name, reason in (
        ("backbone", plain, same, "hgnet_v2", "computes the same"),
        ("backbone", lab, assumed, "hgnet_v2", "computes the same"),
        ("backbone", lab, same, "pp_hgnet_v2", "max-pool"),
        ("classification", {**plain, "use_last_conv": True}, same, "pp_hgnet_v2", "head"),
        ("classification", {**plain, "use_last_conv": False}, same, "hgnet_v2", "computes the same"),
        ("backbone", plain, {**assumed, "hidden_act": ("gelu", "")}, "pp_hgnet_v2", "gelu"),
        ("backbone", plain, {**assumed, "stem_strides": ([2, 1, 1, 1, 1], "")}, "pp_hgnet_v2", "strides"),
        ("backbone", plain, {**assumed, "stage_downsample_strides": (5, "")}, "pp_hgnet_v2", "strides"),
    ):
        chosen = choose_model_type(task, fields, values)
        assert chosen.name == name and reason in chosen.reason


@pytest.mark.parametrize("name", DETECTORS)
def test_the_backbone_inside_a_detectors_file_equals_the_golden_of_its_program(converted_golden, name):
    layout, variant, stages, tolerance = DETECTORS[name]
    golden = np.load(GOLDENS / f"{name}.npz")
    folder = converted_golden(name, task="backbone", layout=layout, variant=variant)
    backbone = hgnetv2_hf.load_backbone(folder, out_features=stages).double().eval()
    assert type(backbone) is hgnetv2_hf.HGNetV2Backbone or layout == "paddledetection"
    with torch.inference_mode():
        maps = backbone(golden_input(golden, torch.float64)).feature_maps
    assert len(maps) == sum(key.startswith("feature_mean") for key in golden.files)
    for i, feature in enumerate(maps):
        assert relative_difference(feature.mean((2, 3)), golden[f"feature_mean_{i}"]) < tolerance


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detectors_file_gives_its_backbone_and_says_what_was_left_out(golden_checkpoint, tmp_path, name):
    report = convert_checkpoint(golden_checkpoint(name), tmp_path / "out", task="backbone")
    assert report.layout == DETECTORS[name][0] and report.variant == DETECTORS[name][1]
    assert any("tensors of the detector" in what for what in report.left_out)
    if name.startswith(("dfine", "rtdetrv2")):
        assert report.assumed["weights"][0] == "ema.module"


@pytest.mark.slow
def test_backbones_without_lab_load_in_stock_transformers(golden_checkpoint, tmp_path, without_package):
    folder = tmp_path / "out"
    convert_checkpoint(golden_checkpoint("rtdetrv2_hgnetv2_l"), folder, task="backbone")
    code = """
import torch, transformers
model = transformers.HGNetV2Backbone.from_pretrained(sys.argv[1], out_features=["stage4"]).double().eval()
assert type(model).__module__.startswith("transformers.models")
with torch.inference_mode():
    pixel_values = torch.linspace(-1, 1, 3 * 64 * 96, dtype=torch.float64).view(1, 3, 64, 96)
    torch.save(model(pixel_values).feature_maps[0], sys.argv[2])
"""
    returncode, _, error = without_package(code, folder, tmp_path / "answer.pt")
    assert returncode == 0, error
    pixel_values = torch.linspace(-1, 1, 3 * 64 * 96, dtype=torch.float64).view(1, 3, 64, 96)
    backbone = hgnetv2_hf.load_backbone(folder, out_features=["stage4"]).double().eval()
    with torch.inference_mode():
        ours = backbone(pixel_values).feature_maps[0]
    assert relative_difference(ours, torch.load(tmp_path / "answer.pt")) < 1e-12


def test_each_layout_is_a_row_in_the_command_line_and_has_a_script():
    assert sorted(LAYOUT_NAMES) == sorted(LAYOUTS)
    for layout in LAYOUTS:
        assert f'"{layout}"' in (SCRIPTS / f"convert_{layout}.py").read_text()


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_a_file_of_each_layout_is_recognised_and_gives_the_same_weights_and_names_back(tiny, tmp_path, layout):
    backbone = not LAYOUTS[layout].has_head
    path = write_as(tiny, layout, tmp_path, backbone=backbone)
    report = convert_checkpoint(path, tmp_path / "out", task="backbone" if backbone else None)
    expected = {"paddledetection": "paddleclas"}.get(layout, layout)  # the same names: content cannot tell
    assert report.layout == expected
    written = load_file(tmp_path / "out" / "model.safetensors")
    source, _ = read_weights(path)
    back = rename_back(written, LAYOUTS[layout])
    assert set(back) == set(source)
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in source.items())


def test_asking_for_a_layout_that_the_file_has_not_is_refused(tiny, tmp_path):
    files = {layout: write_as(tiny, layout, tmp_path) for layout in ("paddleclas", "timm", "transformers")}
    files["rtdetrv2"] = write_as(tiny, "rtdetrv2", tmp_path, backbone=True)
    for has, path in files.items():
        for wanted in LAYOUTS:
            if wanted == has or {wanted, has} == {"paddleclas", "paddledetection"}:
                continue
            with pytest.raises(ConversionError, match=LAYOUTS[wanted].title):
                convert_checkpoint(path, tmp_path / "out", layout=wanted)
    assert not (tmp_path / "out").exists()


def test_the_default_padding_is_that_of_the_program_that_ships_or_trained_the_weights(tiny, tmp_path):
    expected = {"paddleclas": "same", "paddledetection": "same", "timm": "same"}
    for layout in LAYOUTS:
        path = write_as(tiny, layout, tmp_path, backbone=True)
        report = convert_checkpoint(path, tmp_path / "out", task="backbone", layout=layout, overwrite=True)
        padding, reason = report.assumed["pool_padding"]
        assert padding == expected.get(layout, "zero")
        assert report.model_type == ("pp_hgnet_v2" if padding == "same" else "hgnet_v2")
        card = (tmp_path / "out" / "README.md").read_text()
        assert f"| `pool_padding` | `{padding}` | {reason} |" in card
    report = convert_checkpoint(write_as(tiny, "timm", tmp_path), tmp_path / "zero", pool_padding="zero")
    assert report.assumed["pool_padding"] == ("zero", "option") and report.model_type == "pp_hgnet_v2"


@pytest.mark.parametrize("variant", ["pico", "femto", "atto"])
def test_three_stage_variants_convert_as_backbones_only(tmp_path, variant):
    model = randomize(hgnetv2_hf.HGNetV2Backbone(hgnetv2_hf.HGNetV2Config.from_variant(variant)).eval())
    path = write_as(model, "dfine", tmp_path)
    report = convert_checkpoint(path, tmp_path / "out")
    assert (report.variant, report.task, report.layout) == (variant, "backbone", "dfine")
    with pytest.raises(ConversionError, match="backbone"):
        convert_checkpoint(path, tmp_path / "other", task="classification")
    with pytest.raises(ConversionError, match=f"does not hold a b0.* {variant}"):
        convert_checkpoint(path, tmp_path / "other", variant="b0")


@pytest.mark.parametrize("nesting", [(), ("model",), ("ema", "module"), ("state_dict",)])
@pytest.mark.parametrize("old_format", [False, True])
def test_pytorch_files_are_read_wherever_their_weights_lie(tiny, tmp_path, nesting, old_format):
    content = rename_back(tiny.state_dict(), LAYOUTS["timm"])
    expected = content
    for key in reversed(nesting):
        content = {key: content}
    if nesting == ("ema", "module"):
        content["model"] = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    content = {**content, "epoch": 3, "optimizer": {"lr": 0.1}} if nesting else content
    torch.save(content, tmp_path / "any.name", _use_new_zipfile_serialization=not old_format)
    tensors, place = read_weights(tmp_path / "any.name")
    assert place.taken == ".".join(nesting)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    torch.save({"model": {f"module.{name}": t for name, t in expected.items()}}, tmp_path / "data_parallel")
    assert list(read_weights(tmp_path / "data_parallel")[0]) == list(expected)


def test_a_training_checkpoint_with_pickled_objects_is_refused_and_says_why(tiny, tmp_path, capsys):
    import argparse

    torch.save({"model": tiny.state_dict(), "args": argparse.Namespace(lr=1)}, tmp_path / "train.pth")
    assert main(["convert", str(tmp_path / "train.pth"), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "argparse.Namespace" in error and "nothing was executed" in error
    assert len(error.strip().splitlines()) == 1


def test_half_precision_weights_are_widened_and_the_report_says_so(tiny, tmp_path):
    tensors = rename_back(tiny.state_dict(), LAYOUTS["timm"])
    half = {name: t.bfloat16() if t.is_floating_point() else t for name, t in tensors.items()}
    save_file({name: tensor.contiguous() for name, tensor in half.items()}, tmp_path / "half.safetensors")
    report = convert_checkpoint(tmp_path / "half.safetensors", tmp_path / "out")
    assert any("bfloat16" in what for what in report.left_out)
    written = rename_back(load_file(tmp_path / "out" / "model.safetensors"), LAYOUTS["timm"])
    assert all(torch.equal(written[name].to(tensor.dtype), tensor) for name, tensor in half.items())


BAD_VALUES = {"beyond float32": ("conv", 1e300), "negative variance": ("variance", -0.5)}


@pytest.mark.parametrize("words", BAD_VALUES)
@pytest.mark.parametrize("layout", [name for name in LAYOUT_NAMES if name != "keras"])  # whose files are HDF5's
def test_values_that_would_compute_inf_or_nan_are_refused(tiny, tmp_path, layout, words):
    kind, value = BAD_VALUES[words]
    path = write_as(tiny, layout, tmp_path, backbone=not LAYOUTS[layout].has_head)
    tensors = {name: tensor.clone() for name, tensor in read_weights(path)[0].items()}
    endings = (".conv.weight", ".convolution.weight") if kind == "conv" else (".running_var", "._variance")
    name = [each for each in tensors if each.endswith(endings)][3]
    tensors[name] = tensors[name].double()
    tensors[name].view(-1)[0] = value
    path = tmp_path / f"bad.{'pdparams' if path.suffix == '.pdparams' else 'pth'}"
    (write_paddle_file if path.suffix == ".pdparams" else torch.save)(tensors, path)
    with pytest.raises(ConversionError, match=words):
        convert_checkpoint(path, tmp_path / "out")
    with pytest.raises(ConversionError, match=words):
        hgnetv2_hf.load_backbone_into(hgnetv2_hf.HGNetV2Backbone(tiny.config), path)


@pytest.mark.parametrize(
    "sharing", ["one tensor under two names", "all of a shape", "overlapping views", "one storage"]
)
def test_tensors_that_share_memory_convert_and_go_back(tiny, tmp_path, sharing):
    tensors = rename_back(tiny.state_dict(), LAYOUTS["timm"])
    biases = [name for name, tensor in tensors.items() if name.endswith("bn.bias") and tensor.shape == (8,)]
    if sharing == "overlapping views":
        memory = torch.randn(13)
        tensors.update({biases[0]: memory[:8], biases[1]: memory[5:]})
    elif sharing == "one storage":
        parts = torch.cat([tensor.flatten().float() for tensor in tensors.values()]).split(
            [tensor.numel() for tensor in tensors.values()]
        )
        weights = {name: part.view(t.shape) for (name, t), part in zip(tensors.items(), parts) if not is_counter(name)}
        tensors.update(weights)
    else:
        tensors[biases[1]] = tensors[biases[0]]
    if sharing == "all of a shape":
        first = {}
        kinds = {name: (tensor.shape, name.rpartition(".")[2]) for name, tensor in tensors.items()}
        tensors = {name: first.setdefault(kinds[name], tensor) for name, tensor in tensors.items()}
    torch.save(tensors, tmp_path / "tied.pth")
    convert_checkpoint(tmp_path / "tied.pth", tmp_path / "out", verify=True)
    for name in ("w.safetensors", "w.pth", "w.pdparams"):
        layout = "paddleclas" if name.endswith("pdparams") else "timm"
        export_weights(tmp_path / "out", tmp_path / name, layout)
        again = rename(read_weights(tmp_path / name)[0], LAYOUTS[layout])
        for key, tensor in rename(tensors, LAYOUTS["timm"]).items():
            assert is_counter(key) or torch.equal(again[key], tensor), key


def test_a_folder_of_timm_brings_its_preprocessing_and_labels(tiny, tmp_path):
    folder = tmp_path / "timm"
    folder.mkdir()
    shutil.move(write_as(tiny, "timm", tmp_path), folder / "model.safetensors")
    cfg = {
        "input_size": [3, 288, 288],
        "crop_pct": 0.9,
        "interpolation": "bilinear",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    config = {"architecture": "hgnetv2_b0", "pretrained_cfg": {**cfg, "label_names": ["cat", "dog", "owl"]}}
    (folder / "config.json").write_text(json.dumps(config))
    report = convert_checkpoint(folder, tmp_path / "out")
    assert report.assumed["resize_short"] == (320, "config.json of timm")
    saved = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert saved["size"] == {"shortest_edge": 320} and saved["crop_size"] == {"height": 288, "width": 288}
    assert saved["resample"] == 2 and saved["image_mean"] == [0.5] * 3
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "out").config.id2label[2] == "owl"
    assert convert_checkpoint(folder, tmp_path / "b", resize_short=300).assumed["resize_short"] == (300, "option")


@pytest.fixture
def with_channels(tiny_fields, tmp_path):
    """A timm folder with a classifier of so many channels, and this preprocessing."""

    def write(channels, **cfg):
        fields = {**tiny_fields, "stem_channels": [channels, 8, 8], "num_channels": channels}
        config = hgnetv2_hf.PPHGNetV2Config(**fields, class_expand=24, num_labels=3)
        model = randomize(hgnetv2_hf.PPHGNetV2ForImageClassification(config).eval())
        folder = tmp_path / f"channels{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        shutil.move(write_as(model, "timm", tmp_path), folder / "model.safetensors")
        cfg = {"input_size": [channels, 224, 224], **cfg}
        (folder / "config.json").write_text(json.dumps({"architecture": "hgnetv2_b0", "pretrained_cfg": cfg}))
        return folder, model

    return write


@pytest.mark.parametrize(
    "cfg, mean, reason",
    [
        ({}, 0.449, "averaged over the channels as timm does"),
        ({"mean": [0.2], "std": [0.3]}, 0.2, "config.json of timm"),
        ({"mean": [0.1, 0.2, 0.3], "std": [0.3] * 3}, 0.2, "averaged"),
    ],
)
def test_a_classifier_of_grey_images_works_in_pipeline(with_channels, tmp_path, cfg, mean, reason):
    from PIL import Image

    folder, model = with_channels(1, **cfg)
    report = convert_checkpoint(folder, tmp_path / "out", verify=True)
    assert report.assumed["image_mean"][0] == pytest.approx([mean]) and reason in report.assumed["image_mean"][1]
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Grey; short side" in text and "torch.zeros(1, 1, 224, 224)" in text
    photo = Image.effect_noise((300, 260), 60).convert("RGB")
    photo.putpixel((5, 5), (255, 0, 0))
    answer = pipeline("image-classification", model=str(tmp_path / "out"))(photo)
    short = report.assumed["resize_short"][0]
    width, height = round(300 * short / 260), short
    left, top = (width - 224) // 2, (height - 224) // 2
    grey = photo.convert("L").resize((width, height), 3).crop((left, top, left + 224, top + 224))
    std = report.assumed["image_std"][0][0]
    pixels = (torch.from_numpy(np.asarray(grey).copy()).float() / 255 - report.assumed["image_mean"][0][0]) / std
    with torch.inference_mode():
        expected = model(pixels[None, None]).logits.softmax(1)[0]
    assert answer[0]["score"] == pytest.approx(float(expected.max()), abs=1e-4)


@pytest.mark.parametrize(
    "channels, cfg, words",
    [
        (4, {}, "takes images of 4 channels.*--task backbone"),
        (2, {}, "takes images of 2 channels"),
        (3, {"mean": [0.5] * 4}, "config.json of timm\\) has 4 values"),
        (3, {"mean": "wrong"}, "config.json holds something"),
    ],
)
def test_a_classifier_whose_images_no_processor_gives_is_refused(with_channels, tmp_path, channels, cfg, words):
    folder, _ = with_channels(channels, **cfg)
    with pytest.raises(ConversionError, match=words):
        convert_checkpoint(folder, tmp_path / "out")
    report = convert_checkpoint(folder, tmp_path / "out", task="backbone") if not cfg else None
    assert report is None or report.num_channels == channels


@pytest.fixture
def timm_folder(tiny, tmp_path):
    """A folder of timm that holds the tiny classifier, with this configuration."""

    def write(**config):
        folder = tmp_path / f"timm{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        shutil.move(write_as(tiny, "timm", tmp_path), folder / "model.safetensors")
        config = {"architecture": "hgnetv2_b0", "pretrained_cfg": {"input_size": [3, 224, 224]}, **config}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return write


@pytest.mark.parametrize(
    "config, words",
    [
        ({"global_pool": "max"}, "global_pool 'max'; only average pooling"),
        ({"model_args": {"global_pool": "avgmax"}}, "global_pool 'avgmax'"),
        ({"pretrained_cfg": {"global_pool": "max"}}, "global_pool 'max'"),
        ({"model_args": {"act_layer": "silu"}}, "act_layer='silu'"),
        ({"model_args": {"stem_chs": [8, 8]}}, "stem_chs="),
        ({"model_args": {"use_lab": False}}, "use_lab False, and the tensors show True"),
        ({"model_args": {"in_chans": 4}}, "in_chans 4, and the tensors show 3"),
        ({"num_classes": 7}, "num_classes 7, and the tensors show 3"),
        ({"model_args": {"head_hidden_size": 9}}, "head_hidden_size 9, and the tensors show 24"),
        ({"architecture": "hf-hub:somebody/model"}, "names the architecture"),
    ],
)
def test_a_timm_model_that_is_not_computed_here_is_refused_by_name(timm_folder, tmp_path, config, words):
    with pytest.raises(ConversionError, match=words):
        convert_checkpoint(timm_folder(**config), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_timm_arguments_that_agree_or_act_in_training_only_convert(timm_folder, tmp_path):
    arguments = {"drop_rate": 0.2, "drop_path_rate": 0.1, "num_classes": 3, "in_chans": 3, "global_pool": "avg"}
    report = convert_checkpoint(timm_folder(model_args=arguments), tmp_path / "out")
    assert report.assumed["global_pool"] == ("avg", "config.json of timm")
    pooled = timm_folder(global_pool="max", num_classes=9)
    assert convert_checkpoint(pooled, tmp_path / "backbone", task="backbone").task == "backbone"
    alone = timm_folder() / "model.safetensors"
    assert convert_checkpoint(alone, tmp_path / "file").assumed["global_pool"] == ("avg", "timm's default")


def test_verify_builds_the_timm_model_that_the_folder_declares(timm, timm_folder, tiny, tmp_path, monkeypatch):
    report = convert_checkpoint(timm_folder(), tmp_path / "other", verify=True)
    assert not [each for each in report.parity if each.program.startswith("timm")]
    assert any("its hgnetv2_b0, built as config.json says, does not take these" in each for each in report.not_checked)

    torch.manual_seed(0)
    original = timm.create_model("hgnetv2_b0", num_classes=3, in_chans=3, drop_rate=0.2).eval()
    folder = timm_folder(num_classes=3, model_args={"drop_rate": 0.2})
    save_file(original.state_dict(), folder / "model.safetensors")
    asked, build = [], timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *args, **options: asked.append(options) or build(*args, **options)
    )
    report = convert_checkpoint(folder, tmp_path / "out", verify=True)
    assert report.parity[0].program.startswith("timm") and report.parity[0].difference < 1e-9
    assert asked[0]["drop_rate"] == 0.2 and asked[0]["num_classes"] == 3 and not asked[0]["pretrained"]


def test_a_folder_of_transformers_keeps_what_its_configuration_says(tiny, tmp_path):
    without_lab = {**tiny.config.to_dict(), "use_learnable_affine_block": False, "pool_padding": "zero"}
    kind = hgnetv2_hf.PPHGNetV2ForImageClassification
    kind(hgnetv2_hf.PPHGNetV2Config.from_dict(without_lab)).save_pretrained(tmp_path / "without_lab")
    assert convert_checkpoint(tmp_path / "without_lab", tmp_path / "kept").assumed["pool_padding"][0] == "zero"
    tiny.config.dropout_prob = 0.25
    tiny.config.id2label = {0: "a", 1: "b", 2: "c"}
    tiny.save_pretrained(tmp_path / "first")
    hgnetv2_hf.HGNetV2ImageProcessor(size=70, crop_size=60).save_pretrained(tmp_path / "first")
    report = convert_checkpoint(tmp_path / "first", tmp_path / "second")
    assert report.layout == "transformers" and report.model_type == "pp_hgnet_v2"
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second"))
    for field in ("dropout_prob", "pool_padding", "id2label", "use_last_conv", "class_expand"):
        assert before[field] == after[field]
    assert json.loads((tmp_path / "second" / "preprocessor_config.json").read_text())["size"] == {"shortest_edge": 70}


@pytest.mark.parametrize("layout, name", [("paddleclas", "w.pdparams"), ("timm", "w.safetensors"), ("timm", "w.bin")])
def test_exported_and_converted_again_every_bit_is_the_same(tiny, tmp_path, layout, name):
    tiny.save_pretrained(tmp_path / "first")
    export_weights(tmp_path / "first", tmp_path / name, layout)
    convert_checkpoint(tmp_path / name, tmp_path / "second")
    first, second = (load_file(tmp_path / folder / "model.safetensors") for folder in ("first", "second"))
    assert set(first) == set(second)
    for key, tensor in first.items():
        if not (is_counter(key) and layout == "paddleclas"):  # Paddle has no counters
            assert torch.equal(second[key], tensor), key


def test_exporting_what_was_converted_gives_the_source_bit_for_bit(tiny, tmp_path):
    for layout in ("paddleclas", "timm"):
        path = write_as(tiny, layout, tmp_path)
        convert_checkpoint(path, tmp_path / layout)
        export_weights(tmp_path / layout, tmp_path / f"again{path.suffix}", layout)
        source, again = read_weights(path)[0], read_weights(tmp_path / f"again{path.suffix}")[0]
        assert set(source) == set(again) and all(torch.equal(source[name], again[name]) for name in source)
    convert_checkpoint(DIGITS, tmp_path / "digits")
    report = export_weights(tmp_path / "digits", tmp_path / "digits.pdparams", "paddleclas")
    assert str(report).endswith("to convert it back: --resize-short 32 --crop-size 32")
    assert (tmp_path / "digits.pdparams").read_bytes() == DIGITS.read_bytes()


def test_a_backbone_of_dfine_goes_back_bit_for_bit(golden_checkpoint, converted_golden, tmp_path):
    folder = converted_golden("dfine_n", task="backbone")
    report = export_weights(folder, tmp_path / "b0.pth", "dfine")
    again, _ = read_weights(tmp_path / "b0.pth")
    source, _ = read_weights(golden_checkpoint("dfine_n"))
    inside = {name.removeprefix("backbone."): t for name, t in source.items() if name.startswith("backbone.")}
    assert set(again) == set(inside) and all(torch.equal(again[name], inside[name]) for name in inside)
    assert report.notes == [] and "convert it back" not in str(report)  # a backbone has no preprocessing


def test_an_export_says_where_the_other_program_computes_something_else(tiny, tmp_path, capsys):
    tiny.config.dropout_prob = 0.1
    tiny.save_pretrained(tmp_path / "folder")
    assert main(["export-weights", str(tmp_path / "folder"), str(tmp_path / "w.pth"), "--layout", "dfine"]) == 0
    printed = capsys.readouterr().out
    assert "pads the stem's max-pool in its own way" in printed and "classifier is left out" in printed
    notes = export_weights(tmp_path / "folder", tmp_path / "w.pdparams", "paddleclas").notes
    assert len(notes) == 1 and "dropout_prob=0.1" in notes[0]


def test_what_cannot_be_exported_is_one_line_and_nothing_is_written(tiny, tmp_path, capsys):
    tiny.save_pretrained(tmp_path / "folder")
    (tmp_path / "there.pdparams").write_text("mine")
    folder = str(tmp_path / "folder")
    unusual = hgnetv2_hf.PPHGNetV2Config.from_dict({**tiny.config.to_dict(), "hidden_act": "silu"})
    hgnetv2_hf.PPHGNetV2ForImageClassification(unusual).save_pretrained(tmp_path / "silu")
    capsys.readouterr()
    for arguments, status, words in (
        ([folder, str(tmp_path / "there.pdparams"), "--layout", "paddleclas"], 1, "exists already"),
        ([str(tmp_path / "nothing"), str(tmp_path / "x.pdparams"), "--layout", "paddleclas"], 1, "no folder"),
        ([str(tmp_path / "silu"), str(tmp_path / "x.pdparams"), "--layout", "paddleclas"], 1, "silu"),
        ([folder, str(tmp_path / "x.pth"), "--layout", "paddleclas"], 2, "ends in .pdparams"),
        ([folder, str(tmp_path / "no" / "x.pth"), "--layout", "timm"], 1, "Cannot write"),
    ):
        assert main(["export-weights", *arguments]) == status
        error = capsys.readouterr().err
        assert words in error and len(error.strip().splitlines()) == 1
    assert (tmp_path / "there.pdparams").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "silu", "there.pdparams"]


def test_without_an_original_program_the_report_says_which_checks_were_made(tiny, tmp_path, monkeypatch):
    monkeypatch.delenv("HGNETV2_HF_PADDLE_PYTHON", raising=False)
    monkeypatch.setattr(verification.importlib.util, "find_spec", lambda name: None)
    report = convert_checkpoint(write_as(tiny, "paddleclas", tmp_path), tmp_path / "out", verify=True)
    assert report.parity == []
    text = str(report) + (tmp_path / "out" / "README.md").read_text()
    for words in ("holds the same bits", "bit for bit", "finite", "PaddleClas was not run", "timm was not run"):
        assert text.count(words) >= 2, words
    for program in ("PaddleClas", "timm"):
        assert f"  not checked: {program} was not run" in text and f"\n- not checked: {program} was not run" in text
        assert f"  checked: {program}" not in text and f"\n- {program}" not in text


def test_one_of_something_is_not_called_many(tiny_fields, tmp_path):
    config = hgnetv2_hf.PPHGNetV2Config(**tiny_fields, class_expand=24, num_labels=1)
    model = randomize(hgnetv2_hf.PPHGNetV2ForImageClassification(config).eval())
    folder = tmp_path / "timm"
    folder.mkdir()
    shutil.move(write_as(model, "timm", tmp_path), folder / "model.safetensors")
    assert ", classification, 1 class: " in str(convert_checkpoint(folder, tmp_path / "out"))
    (folder / "config.json").write_text(json.dumps({"label_names": ["only"], "mean": [0.5] * 2}))
    with pytest.raises(ConversionError, match="has 2 values; the network takes 3 channels"):
        convert_checkpoint(folder, tmp_path / "other")
    (folder / "config.json").write_text(json.dumps({"label_names": ["a", "b"]}))
    with pytest.raises(ConversionError, match="are for 2 classes, and its tensors for 1"):
        convert_checkpoint(folder, tmp_path / "other")


@pytest.mark.parametrize(
    "python, words", [("/no/such/python", "Cannot run /no/such/python"), (sys.executable, "paddle")]
)
def test_a_python_without_paddleclas_is_one_sentence(tiny, tmp_path, monkeypatch, python, words):
    os.symlink(python, tmp_path / "python")
    monkeypatch.setenv("HGNETV2_HF_PADDLE_PYTHON", python if python != sys.executable else str(tmp_path / "python"))
    with pytest.raises(ConversionError, match=words):
        convert_checkpoint(write_as(tiny, "paddleclas", tmp_path), tmp_path / "out", verify=True)
    assert not (tmp_path / "out").exists()


def test_a_network_of_transformers_is_compared_with_stock_transformers(tiny_fields, tmp_path):
    for number, kind in enumerate((hgnetv2_hf.HGNetV2ForImageClassification, hgnetv2_hf.HGNetV2Backbone)):
        randomize(kind(hgnetv2_hf.HGNetV2Config(**tiny_fields))).save_pretrained(tmp_path / f"in{number}")
        report = convert_checkpoint(tmp_path / f"in{number}", tmp_path / f"out{number}", verify=True)
        (parity,) = report.parity
        assert parity.program.startswith("stock Transformers") and parity.difference < 1e-9
        assert report.model_type == "hgnet_v2"


def test_an_original_program_that_computes_something_else_stops_the_conversion(tiny, tmp_path, monkeypatch):
    def wrong(question):
        maps = question.model.encoder(question.model.embedder(question.pixel_values), output_hidden_states=True)[1]
        return "a program", {"feature_0": maps[0].detach().numpy() * 1.001}

    monkeypatch.setitem(verification._ORIGINALS, "paddleclas", ((wrong, verification._PADDLECLAS[1]),))
    with pytest.raises(ConversionError, match="a program computes something else"):
        convert_checkpoint(write_as(tiny, "paddleclas", tmp_path), tmp_path / "out", verify=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["timm", "dfine", "rtdetrv2", "paddleclas"])
def test_verify_runs_the_real_timm(timm, tiny, tmp_path, layout):
    path = write_as(tiny, layout, tmp_path, backbone=not LAYOUTS[layout].has_head)
    report = convert_checkpoint(path, tmp_path / "out", verify=True)
    parity = next(each for each in report.parity if each.program.startswith("timm"))
    assert parity.difference < 1e-9
    assert f"{parity.difference:.1e}" in (tmp_path / "out" / "README.md").read_text()
    assert (parity.as_converted > 1e-9) == (layout in ("timm", "paddleclas"))
    assert ("with its own pool padding" in str(report)) == (layout in ("timm", "paddleclas"))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["b0", "b1", "b2", "b3", "b4", "b5", "b6"])
def test_timms_own_models_convert_exactly(timm, tmp_path, variant):
    torch.manual_seed(0)
    original = randomize(timm.create_model(f"hgnetv2_{variant}", num_classes=5).eval())
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    report = convert_checkpoint(tmp_path / "model.safetensors", tmp_path / "out", pool_padding="zero")
    assert (report.variant, report.layout, report.task) == (variant, "timm", "classification")
    ours = AutoModelForImageClassification.from_pretrained(tmp_path / "out").double().eval()
    pixel_values = torch.randn(1, 3, 96, 113, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = original.double()(pixel_values)
        output = ours(pixel_values, output_hidden_states=True)
        assert relative_difference(output.logits, expected) < 1e-9
        assert relative_difference(output.hidden_states[-1], original.forward_features(pixel_values)) < 1e-9


def test_an_exported_classifier_loads_in_timm_and_gives_the_same_logits(timm, tmp_path):
    config = hgnetv2_hf.PPHGNetV2Config.from_variant("b0", num_labels=4, pool_padding="zero")
    model = randomize(hgnetv2_hf.PPHGNetV2ForImageClassification(config).eval())
    model.save_pretrained(tmp_path / "folder")
    export_weights(tmp_path / "folder", tmp_path / "w.pth", "timm")
    theirs = timm.create_model("hgnetv2_b0", num_classes=4, checkpoint_path=str(tmp_path / "w.pth")).double().eval()
    pixel_values = torch.randn(1, 3, 64, 75, dtype=torch.float64)
    with torch.inference_mode():
        assert relative_difference(model.double()(pixel_values).logits, theirs(pixel_values)) < 1e-9


@pytest.mark.paddle
@pytest.mark.parametrize("layout", ["paddleclas", "paddledetection", "timm"])
def test_verify_runs_the_real_paddleclas(paddle, tiny, tmp_path, layout):
    report = convert_checkpoint(write_as(tiny, layout, tmp_path), tmp_path / "out", verify=True)
    parity = next(each for each in report.parity if each.program.startswith("PaddleClas"))
    assert parity.difference < 1e-9 and "logits" in parity.compared
    assert f"{parity.difference:.1e}" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.paddle
def test_an_exported_classifier_loads_in_the_real_paddleclas_and_gives_the_same_logits(paddle, tmp_path):
    config = hgnetv2_hf.PPHGNetV2Config.from_variant("b1", num_labels=6)
    model = randomize(hgnetv2_hf.PPHGNetV2ForImageClassification(config).eval())
    model.save_pretrained(tmp_path / "folder")
    export_weights(tmp_path / "folder", tmp_path / "w.pdparams", "paddleclas")
    pixel_values = torch.randn(1, 3, 64, 75)
    request = {"variant": "b1", "class_num": 6, "dropout_prob": 0.0, "pixel_values": pixel_values.numpy()}
    answer = paddle("network", checkpoint=str(tmp_path / "w.pdparams"), **request)
    with torch.inference_mode():
        assert relative_difference(model.double()(pixel_values.double()).logits, answer["logits"]) < 1e-9


@pytest.mark.parametrize("layout", ["timm", "dfine", "rtdetrv2", "paddledetection", "transformers"])
def test_each_script_is_the_convert_command(tiny, tmp_path, monkeypatch, capsys, layout):
    path = write_as(tiny, layout, tmp_path, backbone=not LAYOUTS[layout].has_head)
    script = SCRIPTS / f"convert_{layout}.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(path), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(script), run_name="__main__")
    assert exit_.value.code == 0
    assert f"layout {layout}" in capsys.readouterr().out and (tmp_path / "out" / "model.safetensors").is_file()
