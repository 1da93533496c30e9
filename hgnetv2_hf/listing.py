"""The text of ``hgnetv2-hf list``."""

import functools

from .published import ASSETS, PUBLISHED
from .variants import ALIASES, VARIANTS


def listing():
    """Variants with their sizes, and published checkpoints with the accuracy that their authors give, as text."""
    lines = ["variant  also  parameters  LAB  stages"]
    also = {name: alias for alias, name in ALIASES.items()}
    for name, variant in VARIANTS.items():
        count = f"{parameter_count(name) / 1e6:.2f} M"
        lab = "yes" if variant.use_learnable_affine_block else "no"
        lines.append(f"{name:<9}{also.get(name, ''):<6}{count:>10}  {lab:<5}{len(variant.stages)}")
    lines += ["", "parameters: with PaddleClas's 1000-class head; of the backbone where there are three stages", ""]
    lines.append(f"{'published checkpoint':<42}variant  top-1  top-5    AP     size  resize  address")
    for name, row in PUBLISHED.items():
        top1, top5, ap = (_figure(value) for value in (row.top1, row.top5, row.ap))
        size = file_size(row)
        size = f"{size / 1e6:.1f} MB" if size is not None else "-"
        where = row.url or "ships with this package"
        lines.append(
            f"{name:<42}{row.variant:<7}{top1:>7}{top5:>7}{ap:>6}{size:>9}  {row.resize_short or '-':>6}  {where}"
        )
    lines += [
        "",
        "top-1, top-5: per cent on ImageNet-1k as PaddleClas publishes them for these weights, at its own preprocessing (236);",
        "timm's files hold the same weights. AP: on COCO val2017, as the detector's authors publish it. size: of the tensors, 4 bytes each. A dash: not published, or a backbone alone.",
    ]
    return "\n".join(lines)


def _figure(value):
    return "-" if value is None else f"{value:.2f}" if value > 60 else f"{value:.1f}"


def file_size(row):
    """Bytes of a published file's tensors; of the file itself where it ships with the package; ``None`` for detectors."""
    if row.task == "detection":
        return None
    if row.url is None:
        return (ASSETS / row.file_name).stat().st_size
    model = _meta_model(row.variant, classifier=row.task == "classification")
    counted = [
        tensor.numel() for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")
    ]
    return 4 * sum(counted)


def parameter_count(variant):
    """Parameters of the classifier with 1000 classes, or of the backbone where there is no classifier."""
    model = _meta_model(variant, classifier=len(VARIANTS[variant].stages) == 4)
    return sum(parameter.numel() for parameter in model.parameters())


@functools.cache
def _meta_model(variant, classifier):
    import torch

    from .configuration_hgnetv2 import HGNetV2Config, PPHGNetV2Config
    from .modeling_hgnetv2 import HGNetV2Backbone, PPHGNetV2ForImageClassification

    with torch.device("meta"):
        if classifier:
            return PPHGNetV2ForImageClassification(PPHGNetV2Config.from_variant(variant))
        return HGNetV2Backbone(HGNetV2Config.from_variant(variant))
