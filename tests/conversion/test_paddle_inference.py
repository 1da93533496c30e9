"""Inference models that the real Paddle wrote become the folder that the same weights in a `.pdparams` become."""

import gzip
import json
import os
import struct
import subprocess
import tarfile

import numpy as np
import pytest
import torch
from conftest import GOLDENS, PROGRAMS, relative_difference
from goldens import filler
from mutate_paddle_files import run
from transformers import AutoBackbone, AutoModelForImageClassification

import hgnetv2_hf
from hgnetv2_hf import ConversionError
from hgnetv2_hf.conversion.paddle_file import read_paddle_file, write_paddle_file
from hgnetv2_hf.conversion.paddle_inference import name_by_shapes, paddleclas_names
from hgnetv2_hf.conversion.paddle_program import read_parameters, read_program
from hgnetv2_hf.model.variants import PP_HGNET_VARIANTS


FORMS = ("json", "pdmodel")
SETTINGS = """Global: {model_name: PP-HGNetV2-B0}
PreProcess:
  transform_ops:
  - ResizeImage: {resize_short: 256, interpolation: bilinear, backend: pil}
  - CropImage: {size: 240}
  - NormalizeImage: {mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25], scale: 1.0/255.0, order: '', channel_num: 3}
  - ToCHWImage: null
PostProcess:
  Topk: {topk: 5, label_list: [cat, dog, 7]}
"""


# Ten times ten times … one text: writing it out would never end.
BOMB = "[&a [x, x, x, x, x, x, x, x, x, x]"
for before, after in zip("abcdefgh", "bcdefghi"):
    BOMB += f", &{after} [{', '.join([f'*{before}'] * 10)}]"
BOMB += "]"


@pytest.fixture
def export(tmp_path):
    """Unpacks what the real Paddle wrote: ``export("softmax-json")``, a folder of its own."""

    def unpack(name):
        folder = tmp_path / name
        folder.mkdir()
        with tarfile.open(GOLDENS / "paddle_exports.tar.xz") as archive:
            for member in archive:
                if member.isfile() and member.name.startswith(f"./{name}/"):
                    (folder / os.path.basename(member.name)).write_bytes(archive.extractfile(member).read())
        return folder

    return unpack


def weights_of(folder):
    """The weights of the golden exports, as a `.pdparams` holds them."""
    program = read_program(str(next(path for path in folder.iterdir() if path.suffix in (".json", ".pdmodel"))))
    empty = {name: torch.empty(shape) for name, shape in program.parameters.items()}
    names = paddleclas_names(empty)
    return {
        ours: torch.from_numpy(filler.values(ours, empty[name].shape, conv_gain=1.5)) for name, ours in names.items()
    }


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}


def changed(folder, before, after, count=-1):
    """The export with another text in its program."""
    path = folder / "inference.json"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, count))
    return folder


def packed(folder, mode="w", place="model_infer"):
    path = folder.with_suffix(".tar")
    with tarfile.open(path, mode) as archive:
        for each in folder.iterdir():
            archive.add(each, f"{place}/{each.name}")
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("end", ["softmax", "backbone", "tiny"])
def test_an_export_becomes_the_folder_of_its_pdparams(export, tmp_path, form, end):
    folder = export(f"{end}-{form}")
    write_paddle_file(weights_of(folder), tmp_path / "weights.pdparams")
    options = {"dropout": 0.2, "resize_short": 232} if end == "tiny" else {}
    expected = hgnetv2_hf.convert_checkpoint(tmp_path / "weights.pdparams", tmp_path / "expected", **options)
    report = hgnetv2_hf.convert_checkpoint(folder, tmp_path / "found")
    assert files_of(tmp_path / "found") == files_of(tmp_path / "expected")
    assert (report.layout, report.task, report.num_tensors) == ("paddleclas", expected.task, expected.num_tensors)
    assert report.parity[0].difference < 1e-9 and "exported program" in str(report)
    read = {"dropout_prob": 0.2} if end == "tiny" else {"pool_padding": "same"}
    for field, value in {**read, "hidden_act": "relu"}.items():
        assert report.assumed[field] == (value, f"read from inference.{form}")


@pytest.mark.parametrize("form", ["json", pytest.param("pdmodel", marks=pytest.mark.slow)])
def test_every_way_to_name_an_export_gives_the_same(export, tmp_path, form):
    folder = export(f"softmax-{form}")
    hgnetv2_hf.convert_checkpoint(folder, tmp_path / "expected")
    with pytest.raises(ConversionError, match="an inference model has one"):
        hgnetv2_hf.convert_checkpoint(folder, tmp_path / "found", weights="ema")
    sources = [
        folder / f"inference.{form}",
        folder / "inference.pdiparams",
        packed(folder),
        packed(folder, "w:gz", "."),
    ]
    for source in sources:
        hgnetv2_hf.convert_checkpoint(source, tmp_path / "found", overwrite=True)
        assert files_of(tmp_path / "found") == files_of(tmp_path / "expected")


@pytest.mark.parametrize("form", FORMS)
def test_the_backbone_of_an_exported_classifier_converts_alone(export, tmp_path, form):
    folder = export(f"softmax-{form}")
    write_paddle_file(weights_of(folder), tmp_path / "weights.pdparams")
    hgnetv2_hf.convert_checkpoint(tmp_path / "weights.pdparams", tmp_path / "expected", task="backbone")
    report = hgnetv2_hf.convert_checkpoint(folder, tmp_path / "found", task="backbone")
    assert files_of(tmp_path / "found") == files_of(tmp_path / "expected")
    assert report.parity[0].compared == "42 layers"


@pytest.mark.parametrize("form", FORMS)
def test_a_converted_export_computes_what_paddle_computed(export, tmp_path, form):
    for name in ("softmax", "tiny"):
        outputs = np.load(export(f"{name}-{form}") / "outputs.npz")
        hgnetv2_hf.convert_checkpoint(tmp_path / f"{name}-{form}", tmp_path / name)
        model = AutoModelForImageClassification.from_pretrained(tmp_path / name).eval()
        with torch.inference_mode():
            scores = model(torch.from_numpy(outputs["image"])).logits.softmax(-1)
        assert relative_difference(scores, outputs["output_0"]) < 1e-5
    outputs = np.load(export(f"backbone-{form}") / "outputs.npz")
    hgnetv2_hf.convert_checkpoint(tmp_path / f"backbone-{form}", tmp_path / "maps")
    backbone = hgnetv2_hf.load_backbone(tmp_path / "maps", out_features=["stage2", "stage3", "stage4"]).eval()
    with torch.inference_mode():
        for i, feature in enumerate(backbone(torch.from_numpy(outputs["image"])).feature_maps):
            assert relative_difference(feature, outputs[f"output_{i}"]) < 1e-5


def test_an_exported_ml_decoder_shows_what_no_tensor_does(export, tmp_path):
    folder = export("ml-json")
    outputs = np.load(folder / "outputs.npz")
    write_paddle_file(weights_of(folder), tmp_path / "weights.pdparams")
    with pytest.raises(ConversionError, match="--num-heads"):
        hgnetv2_hf.convert_checkpoint(tmp_path / "weights.pdparams", tmp_path / "expected")
    with pytest.raises(ConversionError, match="--num-labels"):
        hgnetv2_hf.convert_checkpoint(tmp_path / "weights.pdparams", tmp_path / "expected", num_heads=2)
    options = {"num_labels": 10, "num_heads": 2, "image_size": 224}
    hgnetv2_hf.convert_checkpoint(tmp_path / "weights.pdparams", tmp_path / "expected", **options)
    report = hgnetv2_hf.convert_checkpoint(folder, tmp_path / "found")
    expected, found = files_of(tmp_path / "expected"), files_of(tmp_path / "found")
    expected["config.json"] = expected["config.json"].replace(b'function": "relu"', b'function": "gelu"')
    assert found == expected
    assert report.parity[0].difference < 1e-9 and "rounding of constants" in str(report.parity[0])
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "found").eval()
    assert type(model).__name__ == "PPHGNetV2MLForImageClassification"
    with torch.inference_mode():
        scores = model(torch.from_numpy(outputs["image"])).logits.sigmoid()
    assert relative_difference(scores, outputs["output_0"]) < 1e-5


def test_an_export_that_ends_in_sigmoids_is_for_several_labels(export, tmp_path):
    report = hgnetv2_hf.convert_checkpoint(export("sigmoid-json"), tmp_path / "found")
    config = hgnetv2_hf.PPHGNetV2Config.from_pretrained(tmp_path / "found")
    assert config.problem_type == "multi_label_classification"
    assert report.assumed["problem_type"][1] == "read from inference.json"


def test_settings_beside_the_program_give_labels_and_preprocessing(export, tmp_path):
    folder = export("softmax-json")
    (folder / "inference.yml").write_text(SETTINGS)
    report = hgnetv2_hf.convert_checkpoint(packed(folder), tmp_path / "found")
    config = hgnetv2_hf.PPHGNetV2Config.from_pretrained(tmp_path / "found")
    processor = hgnetv2_hf.HGNetV2ImageProcessor.from_pretrained(tmp_path / "found")
    assert config.id2label == {0: "cat", 1: "dog", 2: "7"}
    assert processor.size["shortest_edge"] == 256 and processor.crop_size["height"] == 240
    assert processor.resample == 2 and list(processor.image_std) == [0.25, 0.25, 0.25]
    assert report.assumed["crop_size"] == (240, "read from inference.yml")


@pytest.mark.parametrize(
    "before, after, words",
    [
        ("1.0/255.0", "1.0/127.5", "only 1/255"),
        ("backend: pil", "backend: cv2", None),
        ("resize_short: 256", "size: [240, 240]", "crops what it has resized"),
        ("size: 240", "size: [240, 200]", "square"),
        ("CropImage", "RandCropImage", "RandCropImage"),
        ("interpolation: bilinear", "interpolation: area", "filter 'area'"),
        ("[cat, dog, 7]", "[cat, dog]", "2 classes"),
        ("[cat, dog, 7]", "[cat, dog", "YAML"),
        ("- CropImage: {size: 240}", "- 3", "does not write"),
        ("Global:", "Global: !!python/object/apply:os.getcwd []\nOther:", "YAML"),
        ("size: 240", "size: .inf", "does not write"),
        ("1.0/255.0", "1/0", "does not write"),
        ("mean: [0.5, 0.5, 0.5]", "mean: [.nan, 0, 0]", "not a number"),
        ("std: [0.25, 0.25, 0.25]", "std: [0, 1, 1]", "not a positive number"),
        ("mean: [0.5, 0.5, 0.5]", "mean: '123'", "does not write"),
        ("[cat, dog, 7]", "[yes, no, on]", "no list of names"),
        ("[cat, dog, 7]", "abc", "no list of names"),
        ("- ResizeImage", "- DecodeImage: {to_rgb: false}\n  - ResizeImage", "BGR"),
        ("  - ResizeImage", "  - CropImage: {size: 9}\n  - ResizeImage", "before it resizes"),
        ("  Topk:", "  Other: {label_list: [a, b, c]}\n  Topk:", "two lists"),
        ("[cat, dog, 7]", BOMB, "no list of names"),
        ("size: 240", f"size: {BOMB}", "does not write"),
    ],
)
def test_settings_are_computed_or_refused_in_a_sentence(export, tmp_path, before, after, words):
    folder = export("softmax-json")
    assert before in SETTINGS
    (folder / "inference.yml").write_text(SETTINGS.replace(before, after))
    if words is None:
        report = hgnetv2_hf.convert_checkpoint(folder, tmp_path / "found")
        assert "OpenCV" in report.assumed["resample"][1]
        return
    with pytest.raises(ConversionError, match=words):
        hgnetv2_hf.convert_checkpoint(folder, tmp_path / "found")
    assert not (tmp_path / "found").exists()


@pytest.mark.parametrize("form", FORMS)
def test_images_are_as_large_as_the_program_takes_them(export, tmp_path, form):
    folder = export(f"softmax-{form}")
    report = hgnetv2_hf.convert_checkpoint(folder, tmp_path / "found")
    assert report.assumed["crop_size"] == (224, f"read from inference.{form}")
    if form == "pdmodel":
        return
    changed(folder, "[-1,3,224,224]", "[-1,3,448,448]")
    with pytest.raises(ConversionError, match="crop of 448 pixels"):  # nothing says the short side
        hgnetv2_hf.convert_checkpoint(folder, tmp_path / "other")
    report = hgnetv2_hf.convert_checkpoint(folder, tmp_path / "other", resize_short=480)
    assert report.assumed["crop_size"] == (448, "read from inference.json")


def test_settings_of_a_multi_label_classifier_give_its_images_one_size(export, tmp_path):
    """As PaddleX writes them: no short side and no crop, and labels beside a threshold."""
    folder = export("ml-json")
    labels = [f"thing {i}" for i in range(10)]
    text = "PreProcess:\n  transform_ops:\n  - ResizeImage: {interpolation: bilinear, size: [96, 64]}\n"
    text += f"PostProcess:\n  MultiLabelThreshOutput: {{threshold: 0.5, label_list: {labels}}}\n"
    (folder / "inference.yml").write_text(text)
    report = hgnetv2_hf.convert_checkpoint(folder, tmp_path / "found")
    assert report.assumed["image_size"] == ([64, 96], "read from inference.yml")  # Paddle's size is width and height
    processor = hgnetv2_hf.HGNetV2ImageProcessor.from_pretrained(tmp_path / "found")
    assert processor(torch.zeros(3, 50, 40), return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 96)
    config = json.loads((tmp_path / "found" / "config.json").read_text())
    assert list(config["id2label"].values()) == labels
    (folder / "inference.yml").write_text(text.replace("size: [96, 64]", "resize_short: 256"))
    report = hgnetv2_hf.convert_checkpoint(folder, tmp_path / "other", crop_size=224)
    assert report.assumed["resize_short"] == (256, "read from inference.yml") and "image_size" not in report.assumed
    (folder / "inference.yml").write_text(text.replace("ResizeImage", "SomethingElse"))
    with pytest.raises(ConversionError, match="SomethingElse"):
        hgnetv2_hf.convert_checkpoint(folder, tmp_path / "third")
    hgnetv2_hf.convert_checkpoint(folder, tmp_path / "third", task="backbone")  # which has neither images nor labels


def test_settings_of_a_detector_beside_a_classifier_are_refused(export, tmp_path):
    folder = export("softmax-json")
    step = "{type: Resize, target_size: [640, 640], keep_ratio: false, interp: 2}"
    (folder / "inference.yml").write_text(f"Preprocess:\n- {step}\n")
    with pytest.raises(ConversionError, match="prepares images for a detector"):
        hgnetv2_hf.convert_checkpoint(folder, tmp_path / "found")


def test_strides_come_from_the_program(export, tmp_path):
    folder = export("softmax-json")
    program = json.loads((folder / "inference.json").read_text())
    operations = program["program"]["regions"][0]["blocks"][0]["ops"]
    strided = [
        each for each in operations if each["#"] == "1.depthwise_conv2d" and each["A"][0]["AT"]["D"][0]["D"] == 2
    ]
    for side in strided[-1]["A"][0]["AT"]["D"]:
        side["D"] = 1
    (folder / "inference.json").write_text(json.dumps(program))
    hgnetv2_hf.convert_checkpoint(folder, tmp_path / "found")
    config = hgnetv2_hf.PPHGNetV2Config.from_pretrained(tmp_path / "found")
    assert config.stage_downsample_strides == [2, 2, 2, 1] and config.stem_strides == [2, 1, 1, 2, 1]


BATCH_NORM, OTHER_NUMBERS = '"1.batch_norm_"', "no PP-HGNetV2 needs"


@pytest.mark.parametrize(
    "before, after, words",
    [
        ("9.999999747378752e-06", "0.001", "computes something else"),
        ('"SAME"', '"EXPLICIT"', "does not work|something else"),
        ('"1.softmax"', '"1.tanh"', OTHER_NUMBERS),
        ('"1.relu"', '"1.fused_bias_act"', "fused or quantised"),
        ('"1.conv2d"', '"1.fused_conv2d_add_act"', "fused or quantised"),
        ('"1.concat"', '"1.quantize_linear"', "fused or quantised"),
        ("conv2d_0.w_0", "conv2d_0.w_0.quantized", "fused or quantised"),
        ("conv2d_0.w_0", "conv2d_77.w_0", "shape|do not belong together"),
        ("batch_norm2d_0.w_0", "batch_norm2d_0.w_9", "lacks the parameter|shape"),
        ("linear_0.w_0", "prelu_0.w_0", "another network"),
        ('"magic": "pir"', '"magic": "other"', "no program that Paddle writes"),
        ('"NCHW"', '"NHWC"', "channels-first"),
        ('"N": "groups"', '"N": "fuse_relu"', "fused with others"),
    ],
)
def test_another_program_is_refused_in_a_sentence(export, tmp_path, before, after, words):
    folder = changed(export("softmax-json"), *(text.replace(": ", ":") for text in (before, after)))
    with pytest.raises(ConversionError, match=words):
        hgnetv2_hf.convert_checkpoint(folder, tmp_path / "found")
    assert not (tmp_path / "found").exists()


def test_exchanged_weights_are_seen_by_what_the_program_computes(export, tmp_path):
    """Two layers of one shape under each other's names: nothing but the values shows it."""
    folder = changed(export("softmax-json"), '"batch_norm2d_3.b_0"', '"X"')
    changed(folder, '"batch_norm2d_2.b_0"', '"batch_norm2d_3.b_0"')
    changed(folder, '"X"', '"batch_norm2d_2.b_0"')
    with pytest.raises(ConversionError, match="computes something else"):
        hgnetv2_hf.convert_checkpoint(folder, tmp_path / "found")


@pytest.mark.parametrize(
    "option, words", [({"dropout": 0.5}, "computes something else"), ({"pool_padding": "zero"}, "pads in another way")]
)
def test_an_option_that_contradicts_the_program_is_refused(export, tmp_path, option, words):
    with pytest.raises(ConversionError, match=words):
        hgnetv2_hf.convert_checkpoint(export("softmax-json"), tmp_path / "found", **option)


def program_of(folder):
    """Its program as data, the operations in it, and what writes it back."""
    path = folder / "inference.json"
    content = json.loads(path.read_text())
    operations = content["program"]["regions"][0]["blocks"][0]["ops"]
    return operations, lambda: path.write_text(json.dumps(content))


def test_the_end_of_an_ml_decoder_shows_whether_labels_exclude_each_other(export, tmp_path):
    folder = export("ml-json")
    operations, save = program_of(folder)
    softmax = next(each for each in program_of(export("softmax-json"))[0] if each["#"] == "1.softmax")
    sigmoid = [each for each in operations if each["#"] == "1.sigmoid"][-1]
    sigmoid.update({"#": "1.softmax", "A": softmax["A"]})
    save()
    report = hgnetv2_hf.convert_checkpoint(folder, tmp_path / "found")
    assert report.assumed["problem_type"] == ("single_label_classification", "read from inference.json")


@pytest.mark.parametrize("name, sides", [("ml-json", [448, 320]), ("softmax-json", [448, 320]), ("tiny-json", None)])
def test_images_that_a_program_takes_are_no_squares_or_none_at_all(export, tmp_path, name, sides):
    shape = [-1, 3, *(sides or (10**9, 10**9))]
    folder = changed(export(name), "[-1,3,224,224]", str(shape).replace(" ", ""))
    if sides is None:
        with pytest.raises(ConversionError, match="images of 1000000000×1000000000"):
            hgnetv2_hf.convert_checkpoint(folder, tmp_path / "found")
        return
    report = hgnetv2_hf.convert_checkpoint(folder, tmp_path / "found")
    assert report.assumed["image_size"] == (sides, "read from inference.json")


def test_a_program_that_returns_its_logits_twice_is_refused(export, tmp_path):
    folder = export("softmax-json")
    operations, save = program_of(folder)
    operations.append(json.loads(json.dumps(operations[-1]).replace('"col"', '"other"')))
    save()
    with pytest.raises(ConversionError, match="returns logits twice"):
        hgnetv2_hf.convert_checkpoint(folder, tmp_path / "found")


@pytest.mark.parametrize("before, after", [("downgrade_in_infer", "foo"), ("true", "false")])  # is_test
def test_a_dropout_for_training_or_of_another_kind_is_refused(export, tmp_path, before, after):
    folder = export("tiny-json")
    operations, save = program_of(folder)
    dropout = next(each for each in operations if each["#"] == "1.dropout")
    text = json.dumps(dropout)
    assert before in text
    dropout.update(json.loads(text.replace(before, after)))
    save()
    with pytest.raises(ConversionError, match="dropout"):
        hgnetv2_hf.convert_checkpoint(folder, tmp_path / "found")


@pytest.mark.parametrize("name", ["tiny-json", "ml-json"])
def test_the_printed_way_back_gives_the_same_network(export, tmp_path, name):
    """But for what is noted to be lost."""
    hgnetv2_hf.convert_checkpoint(export(name), tmp_path / "folder")
    report = hgnetv2_hf.export_weights(tmp_path / "folder", tmp_path / "x.pdparams")
    words = next(line for line in str(report).splitlines() if "to convert it back" in line).split()[4:]
    options = {name.removeprefix("--").replace("-", "_"): float(value) for name, value in zip(words[::2], words[1::2])}
    options = {name: value if name == "dropout" else int(value) for name, value in options.items()}
    hgnetv2_hf.convert_checkpoint(tmp_path / "x.pdparams", tmp_path / "back", **options)
    before, after = (files_of(tmp_path / each) for each in ("folder", "back"))
    if name == "ml-json":
        assert "no weight file holds decoder_activation_function" in str(report)
        before["config.json"] = before["config.json"].replace(b'function": "gelu"', b'function": "relu"')
    assert before == after


def test_an_epsilon_that_no_other_program_has_is_noted(tmp_path):
    config = hgnetv2_hf.PPHGNetConfig.from_variant("tiny", batch_norm_eps=1e-3, stage_num_blocks=[1] * 4)
    AutoBackbone.from_config(config).save_pretrained(tmp_path / "folder")
    report = hgnetv2_hf.export_weights(tmp_path / "folder", tmp_path / "x.pdparams")
    assert any("an epsilon of 1e-5, this folder's 0.001" in note for note in report.notes)


def test_the_printed_way_back_of_a_backbone_is_one_that_converts(tmp_path):
    """PP-HGNet's base has a dropout, which is for classifiers; stock pads with zeros, and PaddleClas does not."""
    fields = {"stage_num_blocks": [1] * 4, "out_features": ["stage4"]}
    for config in (
        hgnetv2_hf.PPHGNetConfig.from_variant("base", **fields),
        hgnetv2_hf.HGNetV2Config.from_variant("b0", **fields),
    ):
        AutoBackbone.from_config(config).save_pretrained(tmp_path / config.model_type)
        report = hgnetv2_hf.export_weights(tmp_path / config.model_type, tmp_path / f"{config.model_type}.pdparams")
        options = {} if report.pool_padding is None else {"pool_padding": report.pool_padding}
        hgnetv2_hf.convert_checkpoint(report.output, tmp_path / "back", **options, overwrite=True)
        assert report.dropout is None and not any("epsilon" in note for note in report.notes)
        assert options == ({"pool_padding": "zero"} if "v2" in config.model_type else {})
        assert hgnetv2_hf.load_backbone(tmp_path / "back").config.model_type == config.model_type


def operation(kind, inputs, output, **attributes):
    kinds = {list: lambda v: {"#": "0.a_array", "D": [{"D": each} for each in v]}}
    return {
        "#": kind,
        "A": [{"N": name, "AT": kinds.get(type(v), lambda v: {"D": v})(v)} for name, v in attributes.items()],
        "I": [{"%": each} for each in inputs],
        "O": [{"%": output}],
    }


def test_a_program_that_would_cost_too_much_is_refused_before(export, tmp_path):
    folder = export("softmax-json")
    program = json.loads((folder / "inference.json").read_text())
    operations = program["program"]["regions"][0]["blocks"][0]["ops"]
    place = next(i for i, each in enumerate(operations) if each["#"] == "1.conv2d")
    start = operations[place]["I"][0]["%"]
    bomb, value = [operation("1.full", [], 9000, shape=[1], value=1.0)], start
    for i in range(40):
        bomb += [operation("0.combine", [value, value], 9100 + i), operation("1.concat", [9100 + i, 9000], 9200 + i)]
        value = 9200 + i
    operations[place:place] = bomb
    (folder / "inference.json").write_text(json.dumps(program))
    with pytest.raises(ConversionError, match="more than any such network"):
        hgnetv2_hf.convert_checkpoint(folder, tmp_path / "found")


def parameters_file(path, tensors, start=0):
    """What Paddle writes, numbers starting there: no names, in the order of the names as bytes."""
    names = paddle_names(tensors, start)
    with open(path, "wb") as file:
        for name in sorted(names):
            array = np.ascontiguousarray(tensors[names[name]].numpy())
            shape = b"".join(b"\x10" + varint(size) for size in array.shape)
            description = b"\x08\x05" + shape
            file.write(struct.pack("<IQIi", 0, 0, 0, len(description)) + description + array.tobytes())


def varint(value):
    content = b""
    while value > 127:
        content, value = content + bytes([value & 127 | 128]), value >> 7
    return content + bytes([value])


SUFFIXES = {  # what Paddle calls the parameters of a layer
    "batch_norm2d": {"weight": "w_0", "bias": "b_0", "_mean": "w_1", "_variance": "w_2"},
    "learnable_affine_block": {"scale": "w_0", "bias": "w_1"},
    "conv2d": {"weight": "w_0", "bias": "b_0"},
    "linear": {"weight": "w_0", "bias": "b_0"},
}


def kind_of(layer):
    if layer.endswith(".bn"):
        return "batch_norm2d"
    return "learnable_affine_block" if layer.endswith("lab") else "linear" if layer == "fc" else "conv2d"


def paddle_names(tensors, start):
    names, numbers = {}, {}
    for name in tensors:
        layer, last = name.rsplit(".", 1)
        kind = kind_of(layer)
        number = numbers.setdefault(kind, {}).setdefault(layer, start + len(numbers[kind]))
        names[f"{kind}_{number}.{SUFFIXES[kind][last]}"] = name
    return names


@pytest.mark.parametrize(
    "name", ["paddleclas_b0", "paddleclas_hgnet_tiny", pytest.param("paddleclas_b4", marks=pytest.mark.slow)]
)
def test_shapes_alone_decide_where_one_order_fits(golden_checkpoint, tmp_path, name):
    tensors = read_paddle_file(golden_checkpoint(name))
    parameters_file(tmp_path / "x.pdiparams", tensors)
    found = name_by_shapes(read_parameters(str(tmp_path / "x.pdiparams")), tmp_path / "x.pdiparams")
    assert list(found) == list(tensors)
    assert all(torch.equal(found[each], tensors[each]) for each in tensors)
    parameters_file(tmp_path / "x.pdiparams", tensors, start=7)
    with pytest.raises(ConversionError, match="put its program"):
        name_by_shapes(read_parameters(str(tmp_path / "x.pdiparams")), tmp_path / "x.pdiparams")


def test_parameters_alone_say_that_their_names_are_assumed(golden_checkpoint, tmp_path):
    parameters_file(tmp_path / "x.pdiparams", read_paddle_file(golden_checkpoint("paddleclas_b0")))
    report = hgnetv2_hf.convert_checkpoint(tmp_path / "x.pdiparams", tmp_path / "found")
    expected = hgnetv2_hf.convert_checkpoint(golden_checkpoint("paddleclas_b0"), tmp_path / "expected")
    assert files_of(tmp_path / "found") == files_of(tmp_path / "expected")
    assert "shapes" in report.assumed["names"][1] and "names" not in expected.assumed


def test_incomplete_or_foreign_exports_are_one_sentence(export, tmp_path):
    folder = export("softmax-json")
    parameters = folder / "inference.pdiparams"
    content = parameters.read_bytes()
    cases = {
        "truncated": lambda: parameters.write_bytes(content[:-5]),
        "of another version": lambda: parameters.write_bytes(b"\x01" + content[1:]),
        "not beside it": parameters.unlink,
        "is not one inference model": lambda: (folder / "other.pdiparams").write_bytes(content),
    }
    for words, spoil in cases.items():
        parameters.write_bytes(content)
        spoil()
        source = folder / "inference.json" if words == "not beside it" else folder
        with pytest.raises(ConversionError, match=words):
            hgnetv2_hf.convert_checkpoint(source, tmp_path / "found")
    parameters.write_bytes(export("backbone-json").joinpath("inference.pdiparams").read_bytes())
    (folder / "other.pdiparams").unlink()
    with pytest.raises(ConversionError, match="do not belong together"):
        hgnetv2_hf.convert_checkpoint(folder, tmp_path / "found")


def test_a_damaged_archive_is_refused(export, tmp_path):
    folder = export("softmax-json")
    content = bytearray(gzip.compress(packed(folder).read_bytes(), compresslevel=0))
    path = tmp_path / "x.tar.gz"
    path.write_bytes(content)
    hgnetv2_hf.convert_checkpoint(path, tmp_path / "found")
    flipped = bytearray(content)
    flipped[content.index((folder / "inference.pdiparams").read_bytes()[500:600]) + 50] ^= 1
    for damaged in (flipped, content[:-4], content[:40], packed(folder).read_bytes()[:-20000]):
        path.write_bytes(damaged)
        with pytest.raises(ConversionError, match="cannot be unpacked"):
            hgnetv2_hf.convert_checkpoint(path, tmp_path / "other")


def test_what_macos_adds_and_other_endings_do_not_matter(export, tmp_path):
    folder = export("softmax-json")
    hgnetv2_hf.convert_checkpoint(folder, tmp_path / "expected")
    for name in ("inference.json", "inference.pdiparams"):
        (folder / f"._{name}").write_bytes(b"Mac OS X")
    for source in (folder, packed(folder)):
        hgnetv2_hf.convert_checkpoint(source, tmp_path / "found", overwrite=True)
        assert files_of(tmp_path / "found") == files_of(tmp_path / "expected")
    (folder / "inference.pdiparams").rename(tmp_path / "x.bin")
    with pytest.raises(ConversionError, match="put its program"):
        hgnetv2_hf.convert_checkpoint(tmp_path / "x.bin", tmp_path / "other")


def test_a_folder_with_two_readings_asks_which(export, tmp_path):
    folder = export("softmax-json")
    (folder / "config.json").write_text('{"program": "another"}')
    hgnetv2_hf.convert_checkpoint(folder, tmp_path / "found")
    (folder / "model.safetensors").write_bytes((tmp_path / "found" / "model.safetensors").read_bytes())
    with pytest.raises(ConversionError, match="name the file of the two"):
        hgnetv2_hf.convert_checkpoint(folder, tmp_path / "other")
    hgnetv2_hf.convert_checkpoint(folder / "inference.json", tmp_path / "other")
    assert files_of(tmp_path / "other") == files_of(tmp_path / "found")
    (folder / "model.safetensors").rename(folder / "model.weights.h5")
    with pytest.raises(ConversionError, match="model.weights.h5 beside inference.pdiparams"):
        hgnetv2_hf.convert_checkpoint(folder, tmp_path / "another")


def test_an_operation_with_more_inputs_than_its_kind_has_is_refused(export, tmp_path):
    folder = export("softmax-pdmodel")
    content = (folder / "inference.pdmodel").read_bytes()
    # The slot `Filter` of the first convolution under another name: its weight would be lost in silence.
    (folder / "inference.pdmodel").write_bytes(content.replace(b"Filter", b"Filtre", 1))
    with pytest.raises(ConversionError, match="conv2d takes Filtre"):
        hgnetv2_hf.convert_checkpoint(folder, tmp_path / "found")


def test_archives_write_nowhere_else_and_are_bounded(export, tmp_path, monkeypatch):
    folder = export("softmax-json")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    path = packed(folder, place="../../../../tmp/elsewhere")
    hgnetv2_hf.convert_checkpoint(path, tmp_path / "found")
    assert not os.path.exists("/tmp/elsewhere") and not list((tmp_path / "temporary").iterdir())
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("inference.pdiparams")
        member.size = 5 * 2**30
        archive.fileobj.write(member.tobuf())
    with pytest.raises(ConversionError, match="unfolds to more|cannot be unpacked"):
        hgnetv2_hf.convert_checkpoint(path, tmp_path / "other")
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("inference.pdiparams")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ConversionError, match="without an inference model"):
        hgnetv2_hf.convert_checkpoint(path, tmp_path / "other")
    changed(folder, '"pir"', '"other"')
    with pytest.raises(ConversionError, match="^[^ ]*softmax-json.tar: inference.json is no program"):
        hgnetv2_hf.convert_checkpoint(packed(folder), tmp_path / "other")
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.slow
def test_mutated_exports_convert_or_are_refused():
    """A part of what ``python tests/programs/mutate_paddle_files.py --kind inference`` runs, with other seeds."""
    assert run(count=200, seed=1, jobs=2, kind="inference")


@pytest.mark.paddle
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "variant",
    [
        pytest.param("b0", marks=pytest.mark.slow),
        *(pytest.param(variant, marks=pytest.mark.long) for variant in ("b1", "b2", "b3", "b4", "b5", "b6")),
        *(pytest.param(variant, marks=pytest.mark.long) for variant in ("tiny", "small", "base")),
    ],
)
def test_exports_of_the_real_paddle_equal_its_pdparams(paddle, tmp_path, variant, form):
    is_first = variant in PP_HGNET_VARIANTS
    configuration = hgnetv2_hf.PPHGNetConfig if is_first else hgnetv2_hf.PPHGNetV2Config
    model = AutoModelForImageClassification.from_config(configuration.from_variant(variant, num_labels=10))
    model.save_pretrained(tmp_path / "model")
    checkpoint = tmp_path / "weights.pdparams"
    hgnetv2_hf.export_weights(tmp_path / "model", checkpoint, layout="paddleclas")
    program = PROGRAMS / "export_paddle_inference.py"
    arguments = ["--variant", variant, "--form", form, "--checkpoint", checkpoint]
    python = os.environ["HGNETV2_HF_PADDLE_PYTHON"]
    (tmp_path / "export").mkdir()
    result = subprocess.run([python, program, tmp_path / "export", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    hgnetv2_hf.convert_checkpoint(checkpoint, tmp_path / "expected")
    report = hgnetv2_hf.convert_checkpoint(tmp_path / "export", tmp_path / "found")
    assert files_of(tmp_path / "found") == files_of(tmp_path / "expected")
    assert report.parity[0].difference < 1e-9
