"""The text of ``hgnetv2-hf list``."""

from .published import PUBLISHED
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
    lines.append(f"{'published checkpoint':<26}top-1  top-5  resize  file")
    for name, row in PUBLISHED.items():
        top1, top5 = (f"{value:.2f}" if value is not None else "-" for value in (row.top1, row.top5))
        where = row.url or "ships with this package"
        lines.append(f"{name:<26}{top1:>5}  {top5:>5}  {row.resize_short:>6}  {row.file_name} ({where})")
    return "\n".join(lines)


def parameter_count(variant):
    """Parameters of the classifier with 1000 classes, or of the backbone where there is no classifier."""
    import torch

    from .configuration_hgnetv2 import HGNetV2Config, PPHGNetV2Config
    from .modeling_hgnetv2 import HGNetV2Backbone, PPHGNetV2ForImageClassification

    with torch.device("meta"):
        if len(VARIANTS[variant].stages) < 4:
            model = HGNetV2Backbone(HGNetV2Config.from_variant(variant))
        else:
            model = PPHGNetV2ForImageClassification(PPHGNetV2Config.from_variant(variant))
    return sum(parameter.numel() for parameter in model.parameters())
