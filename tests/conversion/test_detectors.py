"""Detectors: whole published ones converted, compared with their programs, and loaded in stock Transformers too."""

import json
import re
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from conftest import GOLDEN_FAMILIES, GOLDENS, PROGRAMS, golden_input, randomize, relative_difference, slow_except
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import hgnetv2_hf
from hgnetv2_hf import ConversionError, convert_checkpoint, export_weights
from hgnetv2_hf.cli import main
from hgnetv2_hf.conversion.anchors import anchors_of
from hgnetv2_hf.conversion.convert_detector import read_detector
from hgnetv2_hf.conversion.detectors import DETECTORS, recognise_detector, rename_detector
from hgnetv2_hf.conversion.layouts import LAYOUTS, rename_back
from hgnetv2_hf.conversion.paddle_file import write_paddle_file
from hgnetv2_hf.conversion.source import find_source
from hgnetv2_hf.conversion.weight_file import read_weights
from hgnetv2_hf.errors import InferenceError
from hgnetv2_hf.hub.published import PUBLISHED
from hgnetv2_hf.inference.detect import detect
from hgnetv2_hf.model.heads import check_heads


GOLDEN_DETECTORS = {
    "dfine_n": ("d_fine", "b0", 1e-5),
    "dfine_l": ("d_fine", "b4", 1e-5),
    "rtdetrv2_hgnetv2_l": ("rt_detr_v2", "b4", 1e-5),
    "paddledet_rtdetr_hgnetv2_l": ("rt_detr", "b4", 1e-3),  # a float32 golden
    "deim_dfine_n": ("deim", "b0", 1e-5),
    "deim_dfine_l": ("deim", "b4", 1e-5),
    "rtdetrv4_s": ("deim", "b0", 1e-5),
    "deimv2_atto": ("deim_v2", "atto", 1e-5),
    "deimv2_n": ("deim_v2", "b0", 1e-5),
}
OF_STOCK_TYPES = [name for name, (model_type, *_) in GOLDEN_DETECTORS.items() if not model_type.startswith("deim")]


def matched_differences(logits, boxes, golden):
    """Two correct programs may order near-ties among the queries differently, so they are matched one to one."""
    ours = np.concatenate([logits[0], boxes[0]], axis=1)
    theirs = np.concatenate([golden["logits"][0], golden["pred_boxes"][0]], axis=1).astype("float64")
    rows, columns = linear_sum_assignment(np.abs(ours[:, None] - theirs[None]).sum(-1))
    ours, theirs = ours[rows], theirs[columns]
    return relative_difference(ours[:, :-4], theirs[:, :-4]), relative_difference(ours[:, -4:], theirs[:, -4:])


@pytest.mark.parametrize("name", slow_except(GOLDEN_DETECTORS, "dfine_n", "deim_dfine_n", "deimv2_atto", "deimv2_n"))
def test_a_converted_detector_equals_the_golden_of_its_program(converted_golden, name):
    model_type, _, tolerance = GOLDEN_DETECTORS[name]
    golden = np.load(GOLDENS / f"{name}.npz")
    model = transformers.AutoModelForObjectDetection.from_pretrained(converted_golden(name)).double().eval()
    assert model.config.model_type == model_type
    assert type(next(m for n, m in model.named_modules() if n.endswith("backbone.model"))).__module__.startswith(
        "hgnetv2_hf"
    )
    with torch.inference_mode():
        output = model(golden_input(golden, torch.float64))
    logits, boxes = matched_differences(output.logits.numpy(), output.pred_boxes.numpy(), golden)
    assert logits < tolerance and boxes < tolerance, (logits, boxes)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OF_STOCK_TYPES if name != "dfine_l"])
def test_it_loads_in_stock_transformers_alone_and_gives_the_same(converted_golden, without_package, tmp_path, name):
    folder = converted_golden(name)
    golden = np.load(GOLDENS / f"{name}.npz")
    torch.save(golden_input(golden, torch.float64), tmp_path / "input.pt")
    code = """
import torch, transformers
model = transformers.AutoModelForObjectDetection.from_pretrained(sys.argv[1]).double().eval()
with torch.inference_mode():
    output = model(torch.load(sys.argv[2]))
torch.save([output.logits.numpy(), output.pred_boxes.numpy()], sys.argv[3])
"""
    returncode, _, error = without_package(code, folder, tmp_path / "input.pt", tmp_path / "answer.pt")
    assert returncode == 0, error
    logits, boxes = torch.load(tmp_path / "answer.pt", weights_only=False)
    assert max(matched_differences(logits, boxes, golden)) < GOLDEN_DETECTORS[name][2]


@pytest.mark.parametrize("name", ["dfine_n", "rtdetrv2_hgnetv2_l"])
def test_its_file_holds_the_heads_under_both_names(converted_golden, name):
    """Transformers 5.0.0 leaves the heads random when a file holds them inside the decoder only."""
    tensors = load_file(converted_golden(name) / "model.safetensors")
    inside = [name for name in tensors if name.startswith(("model.decoder.class_embed.", "model.decoder.bbox_embed."))]
    assert len(inside) > 20
    for name in inside:
        assert torch.equal(tensors[name], tensors[name.removeprefix("model.decoder.")]), name


@pytest.mark.slow
@pytest.mark.paddle
def test_boxes_on_a_photo_differ_from_those_of_paddledetections_resize_as_documented(paddle, converted_golden, capsys):
    """OpenCV's cubic resize and Transformers' bicubic one are not the same; the README states by how much."""
    data = pytest.importorskip("skimage.data", reason="scikit-image comes with the extra [test]")
    folder = converted_golden("paddledet_rtdetr_hgnetv2_l")
    processor = AutoImageProcessor.from_pretrained(folder)
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    lines = []
    for name in ("astronaut", "coffee"):  # 512×512 and 600×400: enlarged, as most photos of COCO are
        photo = getattr(data, name)()
        original = paddle("resize", pixels=photo, side=640.0)["pixels"]
        ours = processor(images=PIL.Image.fromarray(photo), return_tensors="pt")["pixel_values"]
        theirs = torch.from_numpy(original).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            outputs = [model(each) for each in (ours, theirs)]
        top = [output.logits.sigmoid().amax(-1)[0].topk(50).indices for output in outputs]
        boxes = [output.pred_boxes[0, index] for output, index in zip(outputs, top)]
        nearest = torch.cdist(boxes[0], boxes[1], p=float("inf")).amin(1)
        levels = (ours - theirs).abs() * 255
        lines.append((float(levels.mean()), float(levels.max()), float(nearest.median())))
    mean, largest, box = (max(column) for column in zip(*lines))
    with capsys.disabled():
        print(
            f"\nmean {mean:.2f} and at most {largest:.0f} grey levels; median distance of the 50 best boxes {box:.4f}"
        )
    assert mean < 0.6 and largest <= 25 and box < 1e-4


@pytest.mark.parametrize("name", ["dfine_n", "paddledet_rtdetr_hgnetv2_l"])
def test_the_folder_is_one_of_stock_transformers_and_says_what_was_assumed(converted_golden, name):
    folder = converted_golden(name)
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    config = json.loads((folder / "config.json").read_text())
    assert "auto_map" not in json.dumps(config) and config["backbone_config"]["model_type"] == "hgnet_v2"
    assert config["id2label"]["0"] == "person" and len(config["id2label"]) == 80
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["resample"] == (3 if name.startswith("paddledet") else 2)
    assert processor["do_normalize"] is False and processor["size"] == {"height": 640, "width": 640}
    card = (folder / "README.md").read_text()
    for field in ("encode_proj_layers", "feat_strides", "learn_initial_query", "positional_encoding_temperature"):
        assert f"| `{field}` | `{config[field]}` |" in card, field
    assert "pipeline_tag: object-detection" in card and "| `num_queries` | `300` |" in card
    assert ("DEIM" in card) == name.startswith("dfine")


DFINE = {
    "s": (
        "b0",
        {"depth_mult": 0.34, "hidden_expansion": 0.5, "decoder_layers": 3, "encoder_in_channels": [256, 512, 1024]},
    ),
    "m": ("b2", {"depth_mult": 0.67, "decoder_layers": 4, "encoder_in_channels": [384, 768, 1536]}),
    "x": (
        "b5",
        {"encoder_hidden_dim": 384, "encoder_ffn_dim": 2048, "decoder_in_channels": [384] * 3, "reg_scale": 8.0},
    ),
}
RTDETR = {
    "x": ("b5", {"encoder_hidden_dim": 384, "encoder_ffn_dim": 2048, "decoder_in_channels": [384] * 3}),
    "h": ("b6", {"encoder_hidden_dim": 512, "encoder_ffn_dim": 2048, "decoder_in_channels": [512] * 3}),
}
OTHER_SIZES = {
    **{f"dfine_{size}": ("dfine", "dfine_l", *row) for size, row in DFINE.items()},
    **{f"rtdetrv2_{size}": ("rtdetrv2", "rtdetrv2_hgnetv2_l", *row) for size, row in RTDETR.items()},
    **{f"paddledet_{size}": ("paddledetection", "paddledet_rtdetr_hgnetv2_l", *row) for size, row in RTDETR.items()},
}


def published_file(key, manifest, variant, fields, folder, num_labels):
    """A file as the original program writes it for another size, and the model of Transformers that it holds.

    The names are those of the golden manifest (plus the projections that only other sizes have); shapes and values are
    those of a fresh model of Transformers.
    """
    detector = DETECTORS[key]
    kinds = {
        "dfine": (transformers.DFineConfig, transformers.DFineForObjectDetection),
        "rtdetrv2": (transformers.RTDetrV2Config, transformers.RTDetrV2ForObjectDetection),
        "paddledetection": (transformers.RTDetrConfig, transformers.RTDetrForObjectDetection),
    }
    config_class, model_class = kinds[key]
    backbone_config = hgnetv2_hf.HGNetV2Config.from_variant(variant, out_features=["stage2", "stage3", "stage4"])
    defaults = {"encoder_in_channels": backbone_config.stage_out_channels[1:], "num_labels": num_labels}
    if key == "dfine":
        defaults["decoder_n_points"] = [3, 6, 3]
    torch.manual_seed(0)
    model = model_class(config_class(backbone_config=backbone_config, **{**defaults, **fields})).eval()
    model.save_pretrained(folder / "expected")
    written = load_file(folder / "expected" / "model.safetensors")
    names = list(json.loads((GOLDENS / f"{manifest}.json").read_text())["tensors"])
    prefix = "transformer" if detector.is_paddle else "decoder"
    statistics = ("_mean", "_variance") if detector.is_paddle else ("running_mean", "running_var")
    if f"{prefix}.input_proj.0.conv.weight" not in names:
        names += [f"{prefix}.input_proj.{i}.conv.weight" for i in range(3)]
        names += [f"{prefix}.input_proj.{i}.norm.{each}" for i in range(3) for each in ("weight", "bias", *statistics)]
    backbone = rename_back(
        {
            name.removeprefix("model.backbone.model."): tensor
            for name, tensor in written.items()
            if name.startswith("model.backbone.model.")
        },
        LAYOUTS[detector.backbone_layout],
    )
    tensors = {f"backbone.{name}": tensor.contiguous() for name, tensor in backbone.items()}
    for name in names:
        if not name.startswith("backbone."):
            tensor = _tensor_of(name, detector, written)
            if tensor is not None:
                tensors[name] = tensor
    if key == "dfine":
        for name in ("up", "reg_scale"):
            tensors[f"decoder.{name}"] = written[f"model.decoder.{name}"]
    path = folder / (f"{key}.pdparams" if detector.is_paddle else f"{key}.pth")
    if detector.is_paddle:
        write_paddle_file(tensors, path)
    else:
        torch.save({"ema": {"module": tensors}}, path)
    return path, model, written


def _tensor_of(name, detector, written):
    """The value of one original tensor from those that Transformers wrote, or ``None`` where this size has none."""
    is_matrix = name.endswith(".in_proj_weight")
    shape = (6, 2) if is_matrix else (6,) if name.endswith(".in_proj_bias") else (1,)
    probe = torch.zeros(shape[::-1] if detector.is_paddle and is_matrix else shape)
    signature = LAYOUTS[detector.backbone_layout].signature
    renamed, _ = rename_detector({name: probe, f"backbone.{signature}": torch.zeros(1)}, detector)
    new = [each for each in renamed if not each.startswith("model.backbone.")]
    if not all(each in written for each in new):
        return None
    tensor = torch.cat([written[each] for each in new])
    if detector.is_paddle and "denoising_class_embed" in name:
        return tensor[:-1]
    return tensor.t().contiguous() if detector.is_paddle and tensor.ndim == 2 else tensor


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_SIZES)
def test_other_sizes_and_class_counts_are_recognised_from_the_tensors(tmp_path, name):
    key, manifest, variant, fields = OTHER_SIZES[name]
    classes = 7 if name.endswith("s") else 80
    path, model, expected = published_file(key, manifest, variant, fields, tmp_path, classes)
    report = convert_checkpoint(path, tmp_path / "out", family="dfine" if key == "dfine" else None)
    assert (report.task, report.variant, report.num_labels) == ("detection", variant, classes)
    converted = type(model).from_pretrained(tmp_path / "out").eval()
    for field, value in fields.items():
        assert getattr(converted.config, field) == value, field
    theirs, ours = model.state_dict(), converted.state_dict()
    padding = "model.denoising_class_embed.weight"
    for each, tensor in theirs.items():
        if not each.endswith("num_batches_tracked") and not (each == padding and key == "paddledetection"):
            assert torch.equal(ours[each], tensor), each
    pixel_values = torch.randn(1, 3, 128, 160)
    with torch.inference_mode():
        assert torch.equal(converted(pixel_values).logits, model(pixel_values).logits)


PADDLEX_DETECTORS = {  # size, classes, pixels, a class
    "RT-DETR-L": ("l", 80, 640, "zebra"),
    "RT-DETR-X": ("x", 80, 640, "zebra"),
    "RT-DETR-H": ("h", 80, 640, "zebra"),
    "PP-DocLayout-L": ("l", 23, 640, "header_image"),
    "PP-DocLayout_plus-L": ("l", 20, 800, "reference_content"),
    "RT-DETR-H_layout_3cls": ("h", 3, 640, "seal"),
    "RT-DETR-H_layout_17cls": ("h", 17, 640, "doc_title"),
    "RT-DETR-L_wired_table_cell_det": ("l", 1, 640, "cell"),
    "RT-DETR-L_wireless_table_cell_det": ("l", 1, 640, "cell"),
}
MARKS = {  # those of the same widths as another, and as large, are long
    "PP-DocLayout_plus-L": (),
    **dict.fromkeys(("RT-DETR-H", "RT-DETR-H_layout_17cls", "RT-DETR-L_wireless_table_cell_det"), pytest.mark.long),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=MARKS.get(name, pytest.mark.slow)) for name in PADDLEX_DETECTORS]
)
def test_detectors_of_paddlex_convert_with_their_labels_and_size(tmp_path, name):
    size, classes, pixels, label = PADDLEX_DETECTORS[name]
    variant, fields = RTDETR.get(size, ("b4", {}))
    path, model, _ = published_file(
        "paddledetection", "paddledet_rtdetr_hgnetv2_l", variant, fields, tmp_path, classes
    )
    path = path.rename(tmp_path / PUBLISHED[name].file_name)
    report = convert_checkpoint(path, tmp_path / "out")
    assert (report.published, report.variant, report.num_labels) == (name, variant, classes)
    converted = type(model).from_pretrained(tmp_path / "out").eval()
    assert len(converted.config.id2label) == classes and label in converted.config.label2id
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": pixels, "width": pixels} and processor["resample"] == 3
    assert report.assumed["image_size"] == ([pixels, pixels], f"published with {name}")
    pixel_values = torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        assert torch.equal(converted(pixel_values).logits, model(pixel_values).logits)


def test_verify_compares_the_backbone_of_a_detector_with_timm(timm, golden_checkpoint, tmp_path):
    report = convert_checkpoint(golden_checkpoint("dfine_n"), tmp_path / "out", family="dfine", verify=True)
    (parity,) = report.parity
    assert parity.program.startswith("timm") and parity.difference < 1e-9 and parity.as_converted < 1e-9
    assert "its backbone alone" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.paddle
def test_verify_compares_the_backbone_of_a_detector_with_paddleclas(paddle, golden_checkpoint, tmp_path):
    report = convert_checkpoint(golden_checkpoint("paddledet_rtdetr_hgnetv2_l"), tmp_path / "out", verify=True)
    assert report.parity[0].program.startswith("PaddleClas") and report.parity[0].difference < 1e-9


def test_the_task_of_a_detector_file_can_be_chosen_but_not_invented(golden_checkpoint, tmp_path):
    with pytest.raises(ConversionError, match="whole detector"):
        convert_checkpoint(golden_checkpoint("dfine_n"), tmp_path / "out", task="classification")
    with pytest.raises(ConversionError, match="holds no detector"):
        convert_checkpoint("digits", tmp_path / "out", task="detection")
    with pytest.raises(ConversionError, match="takes no option pool_padding"):
        convert_checkpoint(golden_checkpoint("dfine_n"), tmp_path / "out", pool_padding="same")
    with pytest.raises(ConversionError, match="a detector of D-FINE, not of RT-DETRv2"):
        convert_checkpoint(golden_checkpoint("dfine_n"), tmp_path / "out", layout="rtdetrv2")
    with pytest.raises(ConversionError, match="does not hold a b4"):
        convert_checkpoint(golden_checkpoint("dfine_n"), tmp_path / "out", variant="l", family="dfine")
    assert not (tmp_path / "out").exists()


def test_bad_detector_files_are_one_line_and_nothing_is_left(golden_checkpoint, tmp_path, capsys):
    tensors, _ = read_weights(golden_checkpoint("dfine_n"))
    nan = tensors["decoder.enc_score_head.bias"].clone()
    nan[0] = float("nan")
    cases = {
        "lacks": ({n: t for n, t in tensors.items() if n != "encoder.fpn_blocks.0.cv4.conv.weight"}, "lacks"),
        "unknown": ({**tensors, "decoder.extra.weight": torch.zeros(3)}, "does not have: model.extra.weight"),
        "nan": ({**tensors, "decoder.enc_score_head.bias": nan}, "not finite"),
        "classes": (
            {**tensors, "decoder.dec_score_head.0.weight": torch.zeros(3, 128)},
            "class_embed.0.weight has shape [3, 128]",
        ),
        "neck": ({**tensors, "encoder.input_proj.0.conv.weight": torch.zeros(128, 9, 1, 1)}, "takes maps of"),
        "another_backbone": (
            {name.replace("backbone.stages", "backbone.res_layers"): tensor for name, tensor in tensors.items()},
            "no stages of an HGNetV2",
        ),
        "points": (
            {name: torch.ones(5) * 2 if name.endswith("points_scale") else each for name, each in tensors.items()},
            "how many points",
        ),
    }
    for name, (content, words) in cases.items():
        torch.save({"model": content}, tmp_path / f"{name}.pth")
        assert main(["convert", str(tmp_path / f"{name}.pth"), str(tmp_path / "out"), "--family", "dfine"]) == 1
        error = [line for line in re.split(r"[\r\n]", capsys.readouterr().err) if line.startswith("hgnetv2-hf:")]
        assert len(error) == 1 and words in error[0], (name, error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["dfine_n", "rtdetrv2_hgnetv2_l", "paddledet_rtdetr_hgnetv2_l", "deimv2_atto"])
@pytest.mark.parametrize("part", ["backbone", "neck or encoder"])
def test_detectors_with_negative_variances_or_huge_numbers_are_refused(golden_checkpoint, tmp_path, name, part):
    source = find_source(str(golden_checkpoint(name)))
    tensors, _ = read_weights(source.path)
    inside = [each for each in tensors if each.startswith("backbone.") == (part == "backbone")]
    variance = next(each for each in inside if each.endswith((".running_var", "._variance")))
    weight = next(each for each in inside if tensors[each].ndim == 4)
    for bad, value, words in ((variance, -1e-3, "negative variance"), (weight, -1e39, "beyond float32")):
        changed = tensors[bad].double().clone()
        changed.view(-1)[-1] = value
        with pytest.raises(ConversionError, match=words):
            read_detector(source, recognise_detector(tensors), {**tensors, bad: changed}, GOLDEN_FAMILIES.get(name))


@pytest.mark.parametrize("name", ["dfine_n", "rtdetrv2_hgnetv2_l"])
def test_a_detector_whose_tensors_share_memory_converts(golden_checkpoint, tmp_path, name):
    tensors, _ = read_weights(golden_checkpoint(name))
    heads = [each for each in tensors if each.startswith("decoder.dec_score_head") and each.endswith("weight")]
    norms = [each for each in tensors if re.search(r"^backbone\.stages\.0\..*layers.*bn\.bias$", each)][:2]
    for one, other in (heads[:2], norms):
        tensors[other] = tensors[one]
    torch.save(tensors, tmp_path / "tied.pth")
    convert_checkpoint(tmp_path / "tied.pth", tmp_path / "out", family=GOLDEN_FAMILIES.get(name))
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["model.decoder.class_embed.1.weight"], tensors[heads[1]])


def test_published_detectors_are_in_the_table():
    ap = {name: row.ap for name, row in PUBLISHED.items() if row.task == "detection" and row.ap is not None}
    assert len([row for row in PUBLISHED.values() if row.task == "detection"]) == 5 + 4 + 4 + 3 + 3 + 9 + 5 + 4 + 4
    assert ap["dfine_x_obj2coco"] == 59.3 and ap["rtdetr_hgnetv2_h_6x_coco"] == 56.3 and ap["dfine_n_coco"] == 42.8
    addresses = [row.url for row in PUBLISHED.values() if row.task == "detection" and row.url and not row.repo_id]
    files = [row.file_name for row in PUBLISHED.values() if row.url in addresses]
    assert len(files) == 28 and all(url.endswith(name) for url, name in zip(addresses, files))


def test_a_detector_that_lies_on_a_shared_drive_is_named_with_its_page(tmp_path, capsys):
    assert main(["convert", "deim_dfine_hgnetv2_m_coco_90e", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.strip()
    assert "get deim_dfine_hgnetv2_m_coco_90e.pth from https://github.com/Intellindust-AI-Lab/DEIM" in error
    assert len(error.splitlines()) == 1
    assert main(["list", "deimv2"]) == 0 and main(["list", "rtdetrv4"]) == 0
    printed = capsys.readouterr().out
    assert "https://huggingface.co/Intellindust/DEIMv2_HGNetv2_N_COCO" in printed and "RTv4-X-hgnet" in printed


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "name",
    slow_except([name for name in GOLDEN_DETECTORS if "rtdetr_" not in name and "v2_hg" not in name], "deimv2_atto"),
)
def test_a_detector_written_back_is_the_file_it_came_from(golden_checkpoint, converted_golden, tmp_path, name, suffix):
    """Constants, too; but for counters, which are 0 again, and what RT-DETRv4 uses in training only."""
    layout = {"dfine": "dfine", "deim": "deim", "rtdetrv4": "rtdetrv4", "deimv2": "deimv2"}[name.split("_")[0]]
    report = export_weights(converted_golden(name), tmp_path / f"back{suffix}", layout)
    before, _ = read_weights(golden_checkpoint(name))
    after, place = read_weights(tmp_path / f"back{suffix}")
    assert place.taken == ("model" if suffix == ".pth" else "") and report.num_tensors == len(after)
    assert {each for each in before if "feature_projector" not in each} == set(after)
    for each, tensor in after.items():
        assert tensor.dtype == before[each].dtype, each
        if each == "decoder.anchors":  # logarithms, whose last bit is the processor's
            torch.testing.assert_close(tensor, before[each], rtol=0, atol=1e-6)
        else:
            assert torch.equal(tensor, before[each]) or each.endswith("num_batches_tracked"), each
    family = None if layout == "deimv2" else layout
    again = convert_checkpoint(tmp_path / f"back{suffix}", tmp_path / "again", family=family)
    first, second = (load_file(path / "model.safetensors") for path in (converted_golden(name), tmp_path / "again"))
    assert again.layout == layout and all(torch.equal(tensor, second[each]) for each, tensor in first.items())


def test_the_way_back_is_to_the_program_that_computes_it(converted_golden, tmp_path, capsys):
    wrong = [("deimv2_atto", "dfine", "--layout deimv2"), ("dfine_n", "deim", "--layout dfine")]
    wrong += [("deim_dfine_n", "dfine", "--layout deim or rtdetrv4"), ("dfine_n", "timm", "timm does not know")]
    for name, layout, words in wrong:
        out = tmp_path / "out.pth"
        assert main(["export-weights", str(converted_golden(name)), str(out), "--layout", layout]) == 1
        assert words in capsys.readouterr().err and not out.exists()


def head(tensors, index):
    return {name: each for name, each in tensors.items() if name.startswith(f"decoder.dec_bbox_head.{index}.")}


def without(tensors, prefix):
    return {name: each for name, each in tensors.items() if not name.startswith(prefix)}


BAD_DEIMV2 = {
    "two values of up": (
        lambda t: {**t, "decoder.decoder.up": torch.tensor([0.9])},
        "different values of one constant",
    ),
    "up of two numbers": (
        lambda t: {**without(t, "decoder.decoder.up"), "decoder.up": torch.tensor([0.5, 0.5])},
        "up is one positive number",
    ),
    "no scale": (
        lambda t: {**without(t, "decoder.decoder.reg_scale"), "decoder.reg_scale": torch.tensor([0])},
        "reg_scale is one positive number",
    ),
    "points of one layer": (
        lambda t: {**t, "decoder.decoder.layers.1.cross_attn.num_points_scale": torch.ones(6) / 3},
        "different values of one constant",
    ),
    "a shared head of two layers": (lambda t: without(t, "decoder.dec_bbox_head.2."), "lacks"),
    "a shared head of another layer": (
        lambda t: without(without(t, "decoder.dec_bbox_head.0."), "decoder.dec_bbox_head.1."),
        "missing",
    ),
    "a head too many": (
        lambda t: {**t, **{name.replace("head.0.", "head.3."): each for name, each in head(t, 0).items()}},
        "does not have",
    ),
    "RT-DETRv4's projector": (lambda t: {**t, "encoder.feature_projector.0.bias": torch.zeros(64)}, "does not have"),
}


@pytest.mark.parametrize("case", BAD_DEIMV2)
def test_a_file_that_contradicts_itself_is_refused(golden_checkpoint, tmp_path, case):
    change, words = BAD_DEIMV2[case]
    tensors, _ = read_weights(golden_checkpoint("deimv2_atto"))
    torch.save(change(tensors), tmp_path / "w.pth")
    with pytest.raises(ConversionError, match=words):
        convert_checkpoint(tmp_path / "w.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_number_of_queries_comes_back_by_an_option_and_fits_the_image(golden_checkpoint, tmp_path, capsys):
    source, folder = golden_checkpoint("deimv2_atto"), tmp_path / "folder"
    assert main(["convert", str(source), str(folder), "--num-queries", "30"]) == 0
    assert main(["export-weights", str(folder), str(tmp_path / "w.pth"), "--layout", "deimv2"]) == 0
    assert "to convert it back: --family deimv2 --num-queries 30" in capsys.readouterr().out
    tensors, _ = read_weights(tmp_path / "w.pth")
    small = {**tensors, "decoder.anchors": anchors_of([64, 64], [16, 32])[0]}
    torch.save(small, tmp_path / "small.pth")
    report = convert_checkpoint(tmp_path / "small.pth", tmp_path / "small")
    assert report.assumed["num_queries"] == (20, "as many as an image of this size has places for")
    model = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "small")
    assert model(torch.zeros(1, 3, 64, 64)).logits.shape == (1, 20, 80)
    with pytest.raises(ConversionError, match="has 20 places for queries, not 30"):
        convert_checkpoint(tmp_path / "small.pth", tmp_path / "out", num_queries=30)
    with pytest.raises(ConversionError, match="num_queries is for whole detectors"):
        convert_checkpoint("digits", tmp_path / "out", num_queries=30)


def test_detect_refuses_a_folder_that_lacks_weights_or_cannot_run(converted_golden, tmp_path):
    """Transformers would fill in what is not there at random."""
    PIL.Image.new("RGB", (64, 48)).save(tmp_path / "image.png")
    cases = {"decoder_layers": (4, "its files lack"), "num_queries": (10**5, "cannot be run")}
    for field, (value, words) in cases.items():
        folder = tmp_path / field
        shutil.copytree(converted_golden("deimv2_atto"), folder)
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**content, field: value}))
        with pytest.raises(InferenceError, match=words):
            detect([str(tmp_path / "image.png")], folder, tmp_path / "out", show=str)
        assert not (tmp_path / "out").exists()


CHANGES = {
    "another activation": (
        "config.json",
        {"head_activation_function": "relu"},
        "says `head_activation_function` relu",
    ),
    "another neck": (
        "config.json",
        {"encoder_activation_function": "relu"},
        "says `encoder_activation_function` relu",
    ),
    "a layer less": ("config.json", {"decoder_layers": 2}, "says `decoder_layers` 2"),
    "other strides": ("config.json", {"feat_strides": [8, 16]}, "says `feat_strides` [8, 16]"),
    "no size": ("preprocessor_config.json", {"size": {"shortest_edge": 640}}, "multiples of 32"),
    "an odd size": ("preprocessor_config.json", {"size": {"height": 100, "width": 100}}, "multiples of 32"),
    "a huge size": ("preprocessor_config.json", {"size": {"height": 10**6, "width": 10**6}}, "up to 8192 pixels"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_says_what_its_program_does_not_compute_is_not_written(converted_golden, tmp_path, change):
    name, values, words = CHANGES[change]
    folder = tmp_path / "folder"
    shutil.copytree(converted_golden("deim_dfine_n"), folder)
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **values}))
    with pytest.raises(ConversionError, match=re.escape(words)):
        export_weights(folder, tmp_path / "out.pth", "deim")
    assert not (tmp_path / "out.pth").exists()


def test_deimv2s_flat_files_hold_shared_tensors_once(golden_checkpoint, converted_golden, tmp_path):
    """As `PyTorchModelHubMixin` writes them: of tensors that are one, the first name in order stays."""
    tensors, _ = read_weights(golden_checkpoint("deimv2_atto"))
    shared = ("decoder.up", "decoder.reg_scale", "decoder.dec_bbox_head.1.", "decoder.dec_bbox_head.2.")
    flat = {name: tensor for name, tensor in tensors.items() if not name.startswith(shared)}
    save_file(flat, tmp_path / "model.safetensors")
    report = convert_checkpoint(tmp_path / "model.safetensors", tmp_path / "out")
    assert "reg_scale" not in report.assumed and report.assumed["num_queries"][0] == 100
    first, second = (
        load_file(path / "model.safetensors") for path in (converted_golden("deimv2_atto"), tmp_path / "out")
    )
    assert first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.slow
def test_in_every_model_that_holds_an_hgnetv2_outputs_and_losses_equal_stock(tmp_path):
    """Default configurations of the installed Transformers, found by looking inside; one seed, denoising too."""
    from every_model import answers, build, types_with_hgnetv2

    script = PROGRAMS / "every_model.py"
    run = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stderr[-3000:]
    types = types_with_hgnetv2()
    assert run.stdout.split() == types and "d_fine" in types
    for model_type in types:
        model = build(model_type).eval()
        (network,) = [m for m in model.modules() if isinstance(m, hgnetv2_hf.HGNetV2Backbone)]
        assert network.channels == [each.shape[1] for each in network(torch.zeros(1, 3, 64, 64)).feature_maps]
        stock = load_file(tmp_path / model_type / "model.safetensors")
        model.save_pretrained(tmp_path / "ours")
        ours = load_file(tmp_path / "ours" / "model.safetensors")
        assert set(ours) == set(stock)
        if not all(torch.equal(ours[name], tensor) for name, tensor in stock.items()):
            # Stock's wrong channels make it build a layer and throw it away, which moves the random stream.
            assert model_type == "pp_doclayout_v3"
        # Copied into memory of its own: bits depend on how a tensor lies in it, and a file's lie as the file has them.
        model.load_state_dict(type(model).from_pretrained(tmp_path / model_type).state_dict())
        expected, computed = torch.load(tmp_path / f"{model_type}.pt"), answers(model)
        assert set(expected) == set(computed) and len(expected) >= 2
        for name, tensor in expected.items():
            assert torch.equal(computed[name], tensor), (model_type, name)
        if "train.loss" in expected:
            assert any("_dn_" in name for name in expected)
        shutil.rmtree(tmp_path / "ours")
        shutil.rmtree(tmp_path / model_type)


@pytest.mark.parametrize(
    "name, kinds",
    [
        ("rt_detr", (transformers.RTDetrConfig, transformers.RTDetrForObjectDetection)),
        pytest.param(
            "rt_detr_v2",
            (transformers.RTDetrV2Config, transformers.RTDetrV2ForObjectDetection),
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.parametrize("stock_object", slow_except([False, True], False))
def test_rt_detr_takes_an_hgnetv2_configuration_and_its_folder_loads_in_stock(
    tmp_path, without_package, name, kinds, stock_object
):
    config_class, model_class = kinds
    backbone_config = hgnetv2_hf.HGNetV2Config.from_variant("l", out_features=["stage2", "stage3", "stage4"])
    if stock_object:
        fields = {key: value for key, value in backbone_config.to_dict().items() if key != "out_indices"}
        backbone_config = transformers.HGNetV2Config.from_dict(fields)
    config = config_class(backbone_config=backbone_config, encoder_in_channels=[512, 1024, 2048], decoder_layers=2)
    torch.manual_seed(0)
    model = model_class(config).eval()
    assert isinstance(model.model.backbone.model, hgnetv2_hf.HGNetV2Backbone)
    assert list(model.model.backbone.intermediate_channel_sizes) == [512, 1024, 2048]
    model.save_pretrained(tmp_path / "folder")
    pixel_values = torch.randn(1, 3, 128, 160, dtype=torch.float64)
    torch.save(pixel_values, tmp_path / "input.pt")
    code = """
import torch, transformers
model = transformers.AutoModelForObjectDetection.from_pretrained(sys.argv[1]).double().eval()
assert type(model.model.backbone.model).__module__.startswith("transformers.models")
assert list(model.model.backbone.intermediate_channel_sizes) == [512, 1024, 2048]
with torch.inference_mode():
    torch.save(model(torch.load(sys.argv[2])).logits, sys.argv[3])
"""
    returncode, _, error = without_package(code, tmp_path / "folder", tmp_path / "input.pt", tmp_path / "answer.pt")
    assert returncode == 0, error
    with torch.inference_mode():
        logits = model.double()(pixel_values).logits
    assert relative_difference(logits, torch.load(tmp_path / "answer.pt")) < 1e-9


@pytest.fixture
def fresh_detector(tiny_fields):
    def build(**changes):
        config = hgnetv2_hf.HGNetV2Config(**{**tiny_fields, **changes}, out_features=["stage2", "stage3", "stage4"])
        widths = config.stage_out_channels[1:]
        return transformers.DFineForObjectDetection(
            transformers.DFineConfig(
                backbone_config=config, encoder_in_channels=widths, decoder_layers=2, num_queries=10
            )
        )

    return build


def test_layers_that_share_one_head_are_refused(fresh_detector):
    """As Transformers 5.0.0 builds them."""
    model = fresh_detector()
    heads = model.model.decoder.class_embed
    heads[1].weight = torch.nn.Parameter(heads[0].weight.clone())
    check_heads(model)
    heads[1].weight = heads[0].weight
    with pytest.raises(ValueError, match="one head"):
        check_heads(model)


@pytest.mark.parametrize("form", ["folder", "file", "published"])
def test_a_detector_starts_from_imagenet_weights(fresh_detector, tiny_fields, tmp_path, monkeypatch, form):
    config = hgnetv2_hf.PPHGNetV2Config(**tiny_fields, num_labels=3)
    classifier = randomize(hgnetv2_hf.PPHGNetV2ForImageClassification(config).eval())
    write_paddle_file(rename_back(classifier.state_dict(), LAYOUTS["paddleclas"]), tmp_path / "w.pdparams")
    source = tmp_path / "w.pdparams"
    if form == "folder":
        source = tmp_path / "folder"
        convert_checkpoint(tmp_path / "w.pdparams", source)
    elif form == "published":
        source = "PPHGNetV2_B0_ssld_stage1"
        monkeypatch.setenv("HGNETV2_HF_CACHE", str(tmp_path))
        (tmp_path / "w.pdparams").rename(tmp_path / PUBLISHED[source].file_name)
    model = fresh_detector()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = hgnetv2_hf.load_backbone_into(model, source)
    weights = classifier.state_dict()
    for name, tensor in model.state_dict().items():
        inner = name.removeprefix("model.backbone.model.")
        assert torch.equal(tensor, before[name] if inner == name else weights[inner]), name
    assert report.place == "model.backbone.model" and report.num_tensors > 100
    assert len(report.notes) == 1 and "pads the stem's max-pool in another way" in str(report)


def test_a_backbone_that_does_not_fit_is_refused_by_name_and_changes_nothing(fresh_detector, golden_checkpoint):
    model = fresh_detector()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="holds b0, and the model has no published variant"):
        hgnetv2_hf.load_backbone_into(model, golden_checkpoint("paddleclas_b0"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="has no HGNetV2 inside"):
        hgnetv2_hf.load_backbone_into(torch.nn.Linear(2, 2), golden_checkpoint("paddleclas_b0"))


@pytest.mark.parametrize("tie", [False, True])
def test_an_exported_detector_is_compared_query_by_query(fresh_detector, tie):
    from hgnetv2_hf.inference.comparison import detector_difference

    torch.manual_seed(0)
    model = fresh_detector().eval()
    if not tie:
        randomize(model, seed=1)
    order, samples = torch.randperm(10), [torch.randn(1, 3, 128, 128) for _ in range(2)]

    def run(pixel_values, logits=0.0, boxes=0.0):
        with torch.no_grad():
            output = model(torch.from_numpy(pixel_values))
        found = {name: output[name][:, order].numpy().copy() for name in ("logits", "pred_boxes")}
        found["logits"][0, 3] += logits
        found["pred_boxes"][0, 5] += boxes
        return found

    assert detector_difference(model, run, samples) == 0
    changed = [detector_difference(model, partial(run, **{name: 0.01}), samples) for name in ("logits", "boxes")]
    assert changed == [None, None] if tie else all(1e-4 < each < 0.1 for each in changed)
    assert np.isnan(detector_difference(model, partial(run, boxes=np.nan), samples))
