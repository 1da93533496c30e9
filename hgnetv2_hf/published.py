"""Published checkpoints, as data: file, accuracy and preprocessing as their authors give them.

Sources: PaddleClas ``docs/zh_CN/models/ImageNet1k/PP-HGNetV2.md`` and ``ppcls/configs`` (accuracy on ImageNet-1k, 224×224);
timm ``models/hgnet.py``; the backbone files that D-FINE, RT-DETRv2 and PaddleDetection download. All are Apache-2.0.
"""

from pathlib import Path
from typing import NamedTuple, Optional


ASSETS = Path(__file__).parent / "assets"
PADDLECLAS_URL = "https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/legendary_models/"
DFINE_URL = "https://github.com/Peterande/storage/releases/download/dfinev1.0/"
RTDETRV2_URL = "https://github.com/lyuwenyu/storage/releases/download/v0.1/"
PADDLEDETECTION_URLS = {
    "l": "https://bj.bcebos.com/v1/paddledet/models/pretrained/",
    "x": "https://bj.bcebos.com/v1/paddledet/models/pretrained/",
    "h": "https://paddledet.bj.bcebos.com/models/pretrained/",
}


class Published(NamedTuple):
    variant: str
    file_name: str
    layout: str
    resize_short: Optional[int] = None  # pixels; None for backbones
    crop_size: Optional[int] = None
    top1: Optional[float] = None  # per cent; None where the authors give none
    top5: Optional[float] = None
    labels: Optional[str] = None  # "imagenet-1k" or "digits"
    url: Optional[str] = None  # None for what ships with this package
    repo_id: Optional[str] = None  # on the Hub
    license: str = "apache-2.0"


def _classifiers(variant, top1, top5):
    """PaddleClas's two files of a variant, and timm's two, which hold the same weights."""
    stem = f"PPHGNetV2_{variant.upper()}_ssld"
    rows = {}
    for name, file, accuracy in (
        (f"{stem}_stage2", f"{stem}_pretrained.pdparams", (top1, top5)),
        (f"{stem}_stage1", f"{stem}_stage1_pretrained.pdparams", (None, None)),
    ):
        rows[name] = Published(
            variant, file, "paddleclas", 236, 224, *accuracy, "imagenet-1k", url=PADDLECLAS_URL + file
        )
    for name, accuracy in (
        (f"hgnetv2_{variant}.ssld_stage2_ft_in1k", (top1, top5)),
        (f"hgnetv2_{variant}.ssld_stage1_in22k_in1k", (None, None)),
    ):
        url = f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors"
        # 232 is timm's own: its crop_pct of 0.965.
        rows[name] = Published(
            variant, f"{name}.safetensors", "timm", 232, 224, *accuracy, "imagenet-1k", url=url, repo_id=f"timm/{name}"
        )
    return rows


def _backbone(layout, variant, url):
    file = url.rpartition("/")[2]
    return {Path(file).stem: Published(variant, file, layout, url=url)}


_ROWS = {
    #                        top-1  top-5
    **_classifiers("b0", 77.77, 93.91),
    **_classifiers("b1", 79.18, 94.57),
    **_classifiers("b2", 81.74, 95.88),
    **_classifiers("b3", 82.98, 96.43),
    **_classifiers("b4", 83.57, 96.72),
    **_classifiers("b5", 84.75, 97.32),
    **_classifiers("b6", 86.30, 97.84),
}
for _variant in ("b0", "b1", "b2", "b3", "b4", "b5", "b6"):
    _ROWS.update(_backbone("dfine", _variant, f"{DFINE_URL}PPHGNetV2_{_variant.upper()}_stage1.pth"))
for _alias, _variant in (("l", "b4"), ("x", "b5"), ("h", "b6")):
    _stem = f"PPHGNetV2_{_alias.upper()}_ssld_pretrained"
    _ROWS.update(_backbone("rtdetrv2", _variant, f"{RTDETRV2_URL}{_stem}_from_paddle.pth"))
    _ROWS.update(_backbone("paddledetection", _variant, f"{PADDLEDETECTION_URLS[_alias]}{_stem}.pdparams"))

_ORDER = ("paddleclas", "timm", "dfine", "rtdetrv2", "paddledetection")
PUBLISHED = {
    **dict(sorted(_ROWS.items(), key=lambda item: _ORDER.index(item[1].layout))),
    # Trained by this project (hgnetv2_hf/digits.py); ships with the package.
    "digits": Published("custom", "hgnetv2_digits.pdparams", "paddleclas", 32, 32, labels="digits"),
}


def find_published(path):
    """The name and the row of the published file with this name, or ``(None, None)``."""
    file_name = Path(path).name
    return next(((name, row) for name, row in PUBLISHED.items() if row.file_name == file_name), (None, None))


def published_name(text):
    """The name in the table that ``text`` means (``timm/…`` names the same checkpoint), or ``None``."""
    name = text.removeprefix("timm/")
    return name if name in PUBLISHED else None
