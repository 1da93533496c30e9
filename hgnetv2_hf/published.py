"""Published checkpoints, as data: file, accuracy and preprocessing as their authors give them.

Source: PaddleClas ``docs/zh_CN/models/ImageNet1k/PP-HGNetV2.md`` and ``ppcls/configs``: evaluation on ImageNet-1k, 224×224.
"""

from pathlib import Path
from typing import NamedTuple, Optional


PADDLECLAS_URL = "https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/legendary_models/"
ASSETS = Path(__file__).parent / "assets"


class Published(NamedTuple):
    variant: str
    file_name: str
    resize_short: int
    crop_size: int
    top1: Optional[float]  # per cent; None where the authors give none
    top5: Optional[float]
    labels: str  # "imagenet-1k" or "digits"
    layout: str = "paddleclas"
    url: Optional[str] = None


def _paddleclas(variant, top1, top5):
    stem = f"PPHGNetV2_{variant.upper()}_ssld"
    rows = {
        f"{stem}_stage2": (f"{stem}_pretrained.pdparams", top1, top5),
        f"{stem}_stage1": (f"{stem}_stage1_pretrained.pdparams", None, None),
    }
    return {
        name: Published(variant, file, 236, 224, *accuracy, "imagenet-1k", url=PADDLECLAS_URL + file)
        for name, (file, *accuracy) in rows.items()
    }


PUBLISHED = {
    #                        top-1  top-5
    **_paddleclas("b0", 77.77, 93.91),
    **_paddleclas("b1", 79.18, 94.57),
    **_paddleclas("b2", 81.74, 95.88),
    **_paddleclas("b3", 82.98, 96.43),
    **_paddleclas("b4", 83.57, 96.72),
    **_paddleclas("b5", 84.75, 97.32),
    **_paddleclas("b6", 86.30, 97.84),
    # Trained by this project (hgnetv2_hf/digits.py); ships with the package.
    "digits": Published("custom", "hgnetv2_digits.pdparams", 32, 32, None, None, "digits"),
}


def find_published(path):
    """The row of the published file with this name, or ``None``."""
    name = Path(path).name
    return next((row for row in PUBLISHED.values() if row.file_name == name), None)
