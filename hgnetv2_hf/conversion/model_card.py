"""The README.md of a converted folder."""

from pathlib import Path

from ..published import find_published


def model_card(report):
    """
    Args:
        report ([`ConversionReport`]): what the conversion did.

    Returns:
        `str`: the card, with the Hub's metadata in front.
    """
    row = find_published(report.source)
    title = f"PP-HGNetV2-{report.variant.upper()}" if report.variant else "HGNetV2"
    task = "image-classification" if report.task == "classification" else "image-feature-extraction"
    return "\n".join(
        [
            *_metadata(task, row),
            f"# {title} ({report.task})",
            "",
            f"Converted from `{Path(report.source).name}` (SHA-256 `{report.sha256}`) with hgnetv2_hf.",
            *_published(row),
            "",
            *_usage(report),
            "## Assumed",
            "",
            "No tensor shows these; they come from the published models or from an option of the conversion.",
            "",
            "| field | value | from |",
            "| --- | --- | --- |",
            *(f"| `{field}` | `{value}` | {reason} |" for field, (value, reason) in report.assumed.items()),
            "",
            "## Checked",
            "",
            *(f"- {check}" for check in report.checks),
            "",
        ]
    )


def _metadata(task, row):
    datasets = ["datasets:", "- imagenet-1k"] if row is not None and row.labels == "imagenet-1k" else []
    return [
        "---",
        *(["license: apache-2.0"] if row is not None else []),  # nobody but its author knows that of another file
        "library_name: transformers",
        f"pipeline_tag: {task}",
        "tags:",
        "- hgnet_v2",
        "- pp-hgnetv2",
        *datasets,
        "---",
        "",
    ]


def _published(row):
    if row is None or row.top1 is None:
        return []
    return ["", f"Accuracy on ImageNet-1k as its authors publish it: {row.top1} % top-1, {row.top5} % top-5."]


def _usage(report):
    if report.task == "classification":
        use = ['classify = pipeline("image-classification", model=folder)', 'classify("photo.jpg")']
        imports = "from transformers import pipeline"
    else:
        use = ["backbone = hgnetv2_hf.load_backbone(folder)", "backbone(pixel_values).feature_maps"]
        imports = None
    return [
        "## Use",
        "",
        "```python",
        "import hgnetv2_hf",
        *([imports] if imports else []),
        "",
        *use,
        "```",
        "",
        "Without the package, pass `trust_remote_code=True`: the folder carries the code that loads it.",
        "",
    ]
