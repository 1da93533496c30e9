"""RT-DETR as PaddleDetection exports it for inference becomes a detector of Transformers that computes the same."""

import functools
import io
import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import GOLDENS, relative_difference, slow_except
from goldens import filler
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment

import hgnetv2_hf
from hgnetv2_hf import ConversionError
from hgnetv2_hf.conversion.paddle_detector import IDENTITY_VARIANCE, IDENTITY_WEIGHT, complete, exact_constant
from hgnetv2_hf.conversion.paddle_file import write_paddle_file
from hgnetv2_hf.conversion.paddle_graph import run_program
from hgnetv2_hf.conversion.paddle_inference import paddleclas_names
from hgnetv2_hf.conversion.paddle_program import Operation, Program, read_program


FORMS = ("json", "pdmodel")
SETTINGS = """mode: paddle
metric: COCO
arch: DETR
Preprocess:
- {interp: 1, keep_ratio: false, target_size: [64, 64], type: Resize}
- {mean: [0.0, 0.0, 0.0], norm_type: none, std: [1.0, 1.0, 1.0], type: NormalizeImage}
- {type: Permute}
label_list: [title, text, table, figure, 5]
"""


def unpack(form, folder):
    """What the real Paddle wrote."""
    with tarfile.open(GOLDENS / "paddle_detector.tar.xz") as archive:
        for member in archive:
            if member.isfile() and member.name.startswith(f"./{form}/"):
                (folder / os.path.basename(member.name)).write_bytes(archive.extractfile(member).read())
    return folder


@pytest.fixture
def export(tmp_path):
    """``export("json")``: a folder of its own, with settings or without."""

    def write(form, settings=None):
        (tmp_path / form).mkdir()
        if settings is not None:
            (tmp_path / form / "inference.yml").write_text(settings)
        return unpack(form, tmp_path / form)

    return write


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """``converted("json")``: the report of its conversion, once for all tests."""

    @functools.cache
    def convert(form):
        folder = tmp_path_factory.mktemp(form)
        (folder / "infer_cfg.yml").write_text(SETTINGS)
        return hgnetv2_hf.convert_checkpoint(unpack(form, folder), tmp_path_factory.mktemp("out") / form)

    return convert


@pytest.fixture(scope="module")
def golden():
    """What Paddle computed, and names and shapes of the detector before the export."""
    with tarfile.open(GOLDENS / "paddle_detector.tar.xz") as archive:
        arrays = np.load(io.BytesIO(archive.extractfile("./outputs.npz").read()))
        return dict(arrays), json.load(archive.extractfile("./tensors.json"))


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}


def outputs_of(folder, pixels, dtype=torch.float32):
    model = transformers.RTDetrForObjectDetection.from_pretrained(folder).to(dtype).eval()
    with torch.inference_mode():
        output = model(torch.from_numpy(pixels).to(dtype) / 255)
    return output.logits[0].numpy(), output.pred_boxes[0].numpy()


def matched_differences(ours, theirs):
    """Of logits and boxes, queries matched one to one."""
    distances = np.abs(np.concatenate(ours, 1)[:, None] - np.concatenate(theirs, 1)[None]).sum(-1)
    rows, columns = linear_sum_assignment(distances)
    return [relative_difference(one[rows], other[columns]) for one, other in zip(ours, theirs)]


@pytest.mark.parametrize("form", ["json", pytest.param("pdmodel", marks=pytest.mark.slow)])
def test_an_exported_detector_computes_what_paddle_computed(converted, golden, form):
    report, (arrays, _) = converted(form), golden
    folder = Path(report.output_dir)
    assert report.task == "detection" and report.model_type == "rt_detr"
    assert report.assumed["num_queries"] == (20, f"read from inference.{form}")
    assert report.assumed["image_size"] == ([64, 64], "the anchors in the file")
    assert report.parity[0].difference < 1e-9 and "logits and boxes of 20 queries" in str(report)
    assert "for inference only" in str(report) and "for inference only" in (folder / "README.md").read_text()
    config, processor = (
        json.loads((folder / name).read_text()) for name in ("config.json", "preprocessor_config.json")
    )
    assert config["id2label"] == {"0": "title", "1": "text", "2": "table", "3": "figure", "4": "5"}
    assert processor["resample"] == 2 and processor["size"] == {"height": 64, "width": 64}
    assert "OpenCV" in report.assumed["resample"][1]
    ours = outputs_of(folder, arrays["pixels"])
    assert max(matched_differences(ours, (arrays["logits"][0], arrays["boxes"][0]))) < 1e-4


@pytest.mark.slow
def test_both_formats_of_an_exported_detector_give_one_folder(converted):
    folders = [Path(converted(form).output_dir) for form in FORMS]
    assert files_of(folders[0]) == files_of(folders[1])


@pytest.mark.slow
def test_an_exported_detector_equals_that_of_its_pdparams(converted, golden, tmp_path):
    arrays, manifest = golden
    tensors = {name: torch.from_numpy(array) for name, array in filler.state_dict(manifest).items()}
    write_paddle_file(tensors, tmp_path / "weights.pdparams")
    hgnetv2_hf.convert_checkpoint(tmp_path / "weights.pdparams", tmp_path / "expected", num_queries=20)
    folders = tmp_path / "expected", Path(converted("json").output_dir)
    expected, found = (load_file(folder / "model.safetensors") for folder in folders)
    assert expected.keys() == found.keys()
    different = {name for name in expected if not torch.equal(expected[name], found[name])}
    filled = r"\.bottlenecks\.|class_embed\.0\.|denoising_class_embed"
    assert different and all(re.search(filled, name) for name in different)
    outputs = [outputs_of(folder, arrays["pixels"], torch.float64) for folder in folders]
    assert max(matched_differences(*outputs)) < 1e-5  # kernels were fused in float32


@pytest.mark.parametrize("form", slow_except(FORMS, "pdmodel"))
def test_the_backbone_of_an_exported_detector_converts_alone(export, golden, tmp_path, form):
    _, manifest = golden
    report = hgnetv2_hf.convert_checkpoint(export(form), tmp_path / "found", task="backbone")
    assert report.model_type == "hgnet_v2" and report.parity[0].difference < 1e-9 and "80 layers" in str(report)
    found = load_file(tmp_path / "found" / "model.safetensors")
    name = "stages.3.blocks.0.aggregation_excitation_conv.conv.weight"
    expected = filler.values(f"backbone.{name}", manifest["tensors"][f"backbone.{name}"], manifest["conv_gain"])
    assert np.array_equal(found["encoder.stages.3.blocks.0.aggregation.1.convolution.weight"], expected)


@pytest.mark.parametrize(
    "before, after, words",
    [
        ("keep_ratio: false", "keep_ratio: true", "ratio"),
        ("interp: 1", "interp: 3", "filter 3"),
        ("[64, 64]", "[800, 800]", "anchors in the file are those of"),
        ("[64, 64]", "64", "does not write"),
        ("[64, 64]", "[64, 6400000]", "no image has"),
        ("norm_type: none", "norm_type: mean_std, is_scale: false", "values in 0…1"),
        ("Permute", "PadStride", "PadStride"),
        ("label_list", "PreProcess: {transform_ops: [{CropImage: {size: 224}}]}\nlabel_list", "for a classifier"),
        ("figure, 5]", "figure]", "4 classes"),
    ],
)
def test_settings_of_a_detector_that_contradict_are_refused(export, tmp_path, before, after, words):
    assert before in SETTINGS
    folder = export("pdmodel", SETTINGS.replace(before, after))
    with pytest.raises(ConversionError, match=words):
        hgnetv2_hf.convert_checkpoint(folder, tmp_path / "found")
    assert not (tmp_path / "found").exists()


CLONES = ('"layer_norm_3.b_0_deepcopy_27"', '"layer_norm_3.b_0_deepcopy_49"')
OTHER_PROGRAMS = {
    "a layer's name": ({"eager_tmp_2": "eager_tmq_2"}, "another network"),
    "clones exchanged": ({CLONES[0]: "?", CLONES[1]: CLONES[0], "?": CLONES[1]}, "computes something else"),
    "an activation": ({'"1.gelu"': '"1.relu"'}, "computes something else"),
    "a constant": ({"0.7071067690849304": "0.5"}, "computes something else"),
    "an operation": ({'"1.grid_sample"': '"1.deformable_conv"'}, "deformable_conv, which no PP-HGNetV2 needs"),
    "a fused operation": ({'"1.layer_norm"': '"1.fused_layernorm"'}, "fused or quantised"),
}


@pytest.mark.parametrize("name", slow_except(OTHER_PROGRAMS, "a layer's name"))
def test_another_detectors_program_is_refused_in_a_sentence(export, tmp_path, name):
    changes, words = OTHER_PROGRAMS[name]
    path = export("json") / "inference.json"
    text = path.read_text()
    for before, after in changes.items():
        assert before in text, before
        text = text.replace(before, after)
    path.write_text(text)
    with pytest.raises(ConversionError, match=words):
        hgnetv2_hf.convert_checkpoint(path, tmp_path / "found")
    assert not (tmp_path / "found").exists()


def test_names_do_not_depend_on_what_was_built_before(export):
    program = read_program(str(export("pdmodel") / "inference.pdmodel"))
    empty = {name: torch.empty(shape) for name, shape in program.parameters.items()}
    renamed = {name: re.sub(r"_(\d+)(?=\.|$)", lambda match: f"_{int(match[1]) + 97}", name) for name in empty}
    for name in [name for name in empty if name[-4:-1] in (".w_", ".b_")]:
        renamed[name] = re.sub(r"_(\d+)\.", lambda match: f"_{int(match[1]) + 97}.", name)
    names = {renamed[name]: tensor for name, tensor in empty.items()}
    expected = paddleclas_names(empty)
    assert {renamed[name]: ours for name, ours in expected.items()} == paddleclas_names(names)


def test_a_fused_convolution_is_two_branches_to_the_last_digit():
    for epsilon in (1e-5, float(np.float32(1e-5))):
        assert abs(IDENTITY_WEIGHT / (IDENTITY_VARIANCE + epsilon) ** 0.5 - 1) < 1e-12
    assert all(np.float32(number) == number for number in (IDENTITY_WEIGHT, IDENTITY_VARIANCE))
    block, torch_rng = "neck.fpn_blocks.1.bottlenecks.2", torch.Generator().manual_seed(0)
    fused = {
        f"{block}.conv.weight": torch.randn(4, 4, 3, 3, generator=torch_rng),
        f"{block}.conv.bias": torch.randn(4, generator=torch_rng),
        "transformer.dec_score_head.2.weight": torch.randn(8, 3, generator=torch_rng),
        "transformer.dec_score_head.2.bias": torch.randn(3, generator=torch_rng),
    }
    whole = {name: tensor.double() for name, tensor in complete(fused).items()}
    image = torch.randn(1, 4, 9, 9, generator=torch_rng, dtype=torch.float64)
    total = 0
    for branch, padding in (("conv1", 1), ("conv2", 0)):
        place = f"{block}.{branch}"
        maps = torch.nn.functional.conv2d(image, whole[f"{place}.conv.weight"], padding=padding)
        norm = [whole[f"{place}.bn.{each}"] for each in ("_mean", "_variance", "weight", "bias")]
        total = total + torch.nn.functional.batch_norm(maps, *norm, eps=1e-5)
    kernel, bias = (fused[f"{block}.conv.{each}"].double() for each in ("weight", "bias"))
    expected = torch.nn.functional.conv2d(image, kernel, bias, padding=1)
    assert relative_difference(total, expected) < 1e-12
    assert torch.equal(whole["transformer.dec_score_head.0.bias"], whole["transformer.dec_score_head.2.bias"])
    assert list(whole["transformer.denoising_class_embed.weight"].shape) == [3, 8]


def test_positions_of_another_image_or_kind_are_refused(export):
    with pytest.raises(ConversionError, match="square"):
        exact_constant("neck.pos_embed2", torch.zeros(1, 4, 16))
    with pytest.raises(ConversionError, match="square"):
        exact_constant("neck.pos_embed2", torch.zeros(1, 6, 16))


def operation(kind, inputs, outputs, **attributes):
    return Operation(kind, inputs, outputs, attributes)


BOMBS = {
    "a range": [operation("arange", ["zero", "huge", "one"], ["x"])],
    "a tile": [
        operation("arange", ["zero", "one", "one"], ["x"]),
        operation("tile", ["x"], ["y"], repeat_times=[2**40]),
    ],
    "many values": [
        operation("arange", ["zero", "large", "one"], ["x"]),
        operation("stack", [["x"] * 2], ["y"], axis=0),
        operation("stack", [["x", "x", "x"]], ["z"], axis=0),
        operation("stack", [["x", "x", "x"]], ["w"], axis=0),
        operation("concat", [["y", "z", "w"]], ["v"], axis=0),
    ],
}


@pytest.mark.parametrize("name", BOMBS)
def test_operations_that_would_not_fit_are_refused_before_they_are_computed(name, monkeypatch):
    monkeypatch.setattr("hgnetv2_hf.conversion.paddle_graph._MOST_AT_ONCE", 2**20)
    numbers = {"zero": 0, "one": 1, "large": 2**18 - 100, "huge": 2**40}
    start = [operation("full", [], [name], shape=[1], value=number, dtype="int64") for name, number in numbers.items()]
    with pytest.raises(ConversionError, match="more than any such network"):
        run_program(Program({}, [*start, *BOMBS[name]]), {}, {})
