"""The README.md of a converted folder."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from ..hub.published import PUBLISHED


def model_card(report):
    """
    Args:
        report ([`ConversionReport`]): what the conversion did.

    Returns:
        `str`: the card, with the Hub's metadata in front.
    """
    row = PUBLISHED.get(report.published)
    return "\n".join(
        [
            "---",
            _metadata(report, row).to_yaml(),
            "---",
            "",
            f"# {report.title} ({report.task})",
            "",
            *_origin(report, row),
            *_accuracy(report, row),
            *_usage(report),
            *_preprocessing(report),
            *_assumed(report),
            *_checks(report),
            *_credits(report, row),
        ]
    )


def _metadata(report, row):
    is_imagenet = row is not None and row.labels == "imagenet-1k"
    figures = []
    if is_imagenet and report.task == "classification":
        figures = [("accuracy", "top-1", row.top1), ("accuracy", "top-5", row.top5)]
    elif report.task != "backbone" and row is not None and row.labels in _DATASETS:
        figures = [("mAP", row.ap_of, row.ap)]
    results = [
        EvalResult(
            task_type=_PIPELINE_TAGS[report.task],
            dataset_type=_DATASETS[row.labels],
            dataset_name=_DATASETS[row.labels],
            metric_type=metric,
            metric_name=name,
            metric_value=value,
        )
        for metric, name, value in figures
        if value is not None
    ]
    return ModelCardData(
        license=row.license if row is not None else "unknown",  # nobody but its author knows that of another file
        library_name="transformers",
        pipeline_tag=_PIPELINE_TAGS[report.task],
        tags=[*_tags(report), *([report.variant] if report.variant else [])],
        datasets=[_DATASETS[row.labels]] if row is not None and row.labels in _DATASETS else None,
        model_name=report.title if results else None,
        eval_results=results or None,
    )


def _tags(report):
    return ["pp_hgnet", "pp-hgnet"] if report.model_type == "pp_hgnet" else ["hgnet_v2", "pp-hgnetv2"]


_PIPELINE_TAGS = {
    "classification": "image-classification",
    "detection": "object-detection",
    "backbone": "image-feature-extraction",
}
_DATASETS = {"imagenet-1k": "imagenet-1k", "coco": "detection-datasets/coco"}


def _origin(report, row):
    where = f"[{Path(report.address).name}]({report.address})" if "://" in report.address else f"`{report.address}`"
    lines = [
        f"Variant `{report.variant}`" if report.variant else "Widths of its own",
        f", {report.num_parameters / 1e6:.2f} M parameters, converted from {where} (layout {report.layout}, SHA-256 "
        f"`{report.sha256}`) with hgnetv2_hf. Model type `{report.model_type}`.",
    ]
    licence = row.license if row is not None else "unknown: it is that of the file's author; set it above"
    return ["".join(lines), "", f"Licence: {licence}.", ""]


def _accuracy(report, row):
    if row is not None and row.ap is not None and report.task != "backbone":
        return [f"{row.ap_of} as its authors publish it: {row.ap} (not measured here).", ""]
    if row is None or row.top1 is None or report.task != "classification":
        return []
    is_pp_hgnet = report.model_type == "pp_hgnet"  # nothing says at which preprocessing its figures were measured
    return [
        "Accuracy on ImageNet-1k as PaddleClas publishes it for these weights"
        + (", with a short side of 236 pixels and a crop of 224" if not is_pp_hgnet else "")
        + f": {row.top1} % top-1{f', {row.top5} % top-5' if row.top5 else ''} (not measured here).",
        "",
    ]


def _usage(report):
    folder = report.repo_id or report.output_dir
    if report.task == "detection":
        return _detection_usage(report, folder)
    ours, remote, stock = (
        (_CLASSIFY, _CLASSIFY_REMOTE, _BACKBONE) if report.task == "classification" else (_MAPS, _MAPS_REMOTE, None)
    )
    if report.model_type == "hgnet_v2":
        stock = _STOCK
    sections = [("With hgnetv2_hf (`pip install hgnetv2-hf`)", ours), ("Without it", remote)]
    if stock is not None:
        sections.append(("As a backbone" + (", in stock Transformers" if stock is _STOCK else ""), stock))
    lines = ["## Use", ""]
    for title, code in sections:
        code = code.strip().replace("FOLDER", folder).replace("CHANNELS", str(report.num_channels))
        lines += [f"{title}:", "", "```python", *code.splitlines(), "```", ""]
    if report.model_type == "hgnet_v2":
        return lines
    if report.model_type == "pp_hgnet":
        return [*lines, "Stock Transformers alone refuses this model type: it has no PP-HGNet.", ""]
    if report.assumed.get("problem_type", ("",))[0] == "multi_label_classification":
        lines += [
            "Several labels may fit an image: each has a score of its own, a sigmoid, and those above 0.5 count.",
            "",
        ]
    lines.append("Stock Transformers alone refuses this model type, because it would compute something else.")
    if not report.has_lab:
        program = "KerasHub" if report.model_type == "hgnet_v2_keras" else "PaddleClas"
        lines.append(
            f"It computes the backbone as {program} does: converted with `--task backbone`, that loads in stock "
            "Transformers."
        )
    return [*lines, ""]


def _detection_usage(report, folder):
    is_stock = not report.model_type.startswith("deim")
    code = (_DETECT if is_stock else _DETECT_REMOTE).strip().replace("FOLDER", folder)
    with_what = "With Transformers alone, or with hgnetv2_hf imported, which gives the same outputs:"
    if not is_stock:
        with_what = (
            "With Transformers alone, which runs the code in this folder (and prints that it does not know the "
            "class), or with `import hgnetv2_hf` and without `trust_remote_code`:"
        )
    lines = ["## Use", "", with_what, "", "```python", *code.splitlines(), "```", ""]
    if report.model_type == "d_fine":
        _, reason = report.assumed["head activation"]
        lines += [
            f"The prediction heads have D-FINE's ReLU ({reason}). DEIM and RT-DETRv4 have SiLU there and the same "
            "tensors: weights of theirs would be wrong here.",
            "",
        ]
    return lines


_DETECT = """
from transformers import pipeline

detect = pipeline("object-detection", model="FOLDER")
detect("photo.jpg", threshold=0.5)
"""
_DETECT_REMOTE = """
from transformers import pipeline

detect = pipeline("object-detection", model="FOLDER", trust_remote_code=True)
detect("photo.jpg", threshold=0.5)
"""
_CLASSIFY = """
import hgnetv2_hf
from transformers import pipeline

classify = pipeline("image-classification", model="FOLDER")
classify("photo.jpg")
"""
_CLASSIFY_REMOTE = """
from transformers import pipeline

classify = pipeline("image-classification", model="FOLDER", trust_remote_code=True)
classify("photo.jpg")
"""
_BACKBONE = """
import hgnetv2_hf
import torch

backbone = hgnetv2_hf.load_backbone("FOLDER", out_features=["stage2", "stage3", "stage4"]).eval()
feature_maps = backbone(torch.zeros(1, CHANNELS, 224, 224)).feature_maps
"""
_MAPS = """
import hgnetv2_hf
import torch

backbone = hgnetv2_hf.load_backbone("FOLDER", out_features=["stage2", "stage3"]).eval()
feature_maps = backbone(torch.zeros(1, CHANNELS, 224, 224)).feature_maps
"""
_MAPS_REMOTE = """
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True).eval()
pooled = model(torch.zeros(1, CHANNELS, 224, 224)).pooler_output
"""
_STOCK = """
import torch
from transformers import HGNetV2Backbone

backbone = HGNetV2Backbone.from_pretrained("FOLDER", out_features=["stage2", "stage3"]).eval()
feature_maps = backbone(torch.zeros(1, CHANNELS, 224, 224)).feature_maps
"""


def _preprocessing(report):
    if report.task == "backbone":
        return []
    value = {field: value for field, (value, _) in report.assumed.items()}
    if report.task == "detection":
        height, width = value["image_size"]
        size = f"RGB; resized to {height}×{width} pixels (PIL filter {value['resample']})"
        return ["## Preprocessing", "", f"{size}; scaled to 0…1. `preprocessor_config.json` holds it.", ""]
    pil = f"(PIL filter {value['resample']}; 2 is bilinear, 3 bicubic)"
    if "image_size" in value:
        height, width = value["image_size"]
        size = f"resized to {height}×{width} pixels {pil}, without a crop"
    else:
        crop = value["crop_size"]
        size = f"short side resized to {value['resize_short']} pixels {pil}; centre crop of {crop}×{crop}"
    return [
        "## Preprocessing",
        "",
        f"{'Grey' if report.num_channels == 1 else 'RGB'}; {size}; scaled to 0…1; mean {value['image_mean']}, "
        f"standard deviation {value['image_std']}. `preprocessor_config.json` holds it.",
        "",
    ]


def _assumed(report):
    lines = [
        "## Assumed",
        "",
        "No tensor shows these; they come from the published models, a file beside the weights, or an option.",
        "",
        "| field | value | from |",
        "| --- | --- | --- |",
        *(f"| `{field}` | `{value}` | {reason} |" for field, (value, reason) in report.assumed.items()),
        "",
    ]
    if report.left_out:
        lines += ["Left out:", "", *(f"- {what}" for what in report.left_out), ""]
    return lines


def _checks(report):
    checks = [f"- {check}" for check in [*report.checks, *map(str, report.parity)]]
    not_checked = report.not_checked or (
        [] if report.parity else ["no original program was run: convert with `--verify` for that"]
    )
    return ["## Checked", "", *checks, *(f"- not checked: {what}" for what in not_checked), ""]


def _credits(report, row):
    if row is not None and report.published == "digits":
        return ["Trained by the hgnetv2_hf project on scikit-learn's digits (E. Alpaydin and C. Kaynak, UCI).", ""]
    network = "PP-HGNet" if report.model_type == "pp_hgnet" else "PP-HGNetV2"
    return [
        f"{network} is the work of the PaddlePaddle authors: "
        "[PaddleClas](https://github.com/PaddlePaddle/PaddleClas); SSLD: "
        "[arXiv 2103.05959](https://arxiv.org/abs/2103.05959).",
        "",
    ]
