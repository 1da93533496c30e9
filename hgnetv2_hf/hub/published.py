"""Published checkpoints, as data: file, accuracy and preprocessing as their authors give them.

Sources: PaddleClas ``docs/zh_CN/models/ImageNet1k/PP-HGNetV2.md`` and ``ppcls/configs`` (accuracy on ImageNet-1k, 224×224);
timm ``models/hgnet.py``; the backbone files that D-FINE, RT-DETRv2 and PaddleDetection download; the model tables of these three
(AP on COCO val2017). All are Apache-2.0.
"""

from pathlib import Path
from typing import NamedTuple, Optional


ASSETS = Path(__file__).parents[1] / "assets"
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
    task: str = "classification"  # or "backbone", "detection"
    resize_short: Optional[int] = None  # pixels; None for backbones
    crop_size: Optional[int] = None
    top1: Optional[float] = None  # per cent; None where the authors give none
    top5: Optional[float] = None
    labels: Optional[str] = None  # "imagenet-1k", "coco" or "digits"
    ap: Optional[float] = None  # of detectors on COCO val2017
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
            variant,
            file,
            "paddleclas",
            "classification",
            236,
            224,
            *accuracy,
            "imagenet-1k",
            url=PADDLECLAS_URL + file,
        )
    for name, accuracy in (
        (f"hgnetv2_{variant}.ssld_stage2_ft_in1k", (top1, top5)),
        (f"hgnetv2_{variant}.ssld_stage1_in22k_in1k", (None, None)),
    ):
        url = f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors"
        # 232 is timm's own: its crop_pct of 0.965.
        rows[name] = Published(
            variant,
            f"{name}.safetensors",
            "timm",
            "classification",
            232,
            224,
            *accuracy,
            "imagenet-1k",
            url=url,
            repo_id=f"timm/{name}",
        )
    return rows


def _backbone(layout, variant, url):
    file = url.rpartition("/")[2]
    return {Path(file).stem: Published(variant, file, layout, "backbone", url=url)}


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

_DFINE_AP = {  # COCO; COCO after Objects365
    "n": ("b0", 42.8, None),
    "s": ("b0", 48.5, 50.7),
    "m": ("b2", 52.3, 55.1),
    "l": ("b4", 54.0, 57.3),
    "x": ("b5", 55.8, 59.3),
}
_RTDETR_AP = {"l": ("b4", 52.9, 53.0), "x": ("b5", 54.7, 54.8), "h": ("b6", 56.3, 56.3)}  # RT-DETRv2, PaddleDetection


def _detectors():
    for size, (variant, ap, ap_after_objects365) in _DFINE_AP.items():
        files = {f"dfine_{size}_coco": (ap, "coco")}
        if ap_after_objects365 is not None:
            epochs = "_e25" if size == "l" else ""
            files[f"dfine_{size}_obj2coco{epochs}"] = (ap_after_objects365, "coco")
            files[f"dfine_{size}_obj365"] = (None, None)
        for name, (figure, labels) in files.items():
            yield (
                name,
                Published(
                    variant,
                    f"{name}.pth",
                    "dfine",
                    "detection",
                    labels=labels,
                    ap=figure,
                    url=f"{DFINE_URL}{name}.pth",
                ),
            )
    for size, (variant, pytorch, paddle) in _RTDETR_AP.items():
        name = f"rtdetrv2_hgnetv2_{size}_6x_coco_from_paddle"
        url = f"{RTDETRV2_URL}{name}.pth"
        yield name, Published(variant, f"{name}.pth", "rtdetrv2", "detection", labels="coco", ap=pytorch, url=url)
        name = f"rtdetr_hgnetv2_{size}_6x_coco"
        url = f"https://bj.bcebos.com/v1/paddledet/models/{name}.pdparams"
        yield (
            name,
            Published(variant, f"{name}.pdparams", "paddledetection", "detection", labels="coco", ap=paddle, url=url),
        )


_ORDER = ("paddleclas", "timm", "dfine", "rtdetrv2", "paddledetection")
PUBLISHED = {
    **dict(sorted(_ROWS.items(), key=lambda item: _ORDER.index(item[1].layout))),
    **dict(_detectors()),
    # Trained by this project (hgnetv2_hf/training/README.md says how); ships with the package.
    "digits": Published("custom", "hgnetv2_digits.pdparams", "paddleclas", "classification", 32, 32, labels="digits"),
}


def find_published(path):
    """The name and the row of the published file with this name, or ``(None, None)``."""
    file_name = Path(path).name
    return next(((name, row) for name, row in PUBLISHED.items() if row.file_name == file_name), (None, None))


def published_name(text):
    """The name in the table that ``text`` means (``timm/…`` names the same checkpoint), or ``None``."""
    name = text.removeprefix("timm/")
    return name if name in PUBLISHED else None
