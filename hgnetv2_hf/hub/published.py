"""Published checkpoints, as data: file, accuracy and preprocessing as their authors give them.

Sources: PaddleClas ``docs/zh_CN/models/ImageNet1k/PP-HGNetV2.md``, ``PP-HGNet.md`` and ``ppcls/configs`` (accuracy on
ImageNet-1k, 224×224); timm ``models/hgnet.py``; the backbone files that D-FINE, RT-DETRv2 and PaddleDetection
download; the model tables of these three and of DEIM, RT-DETRv4 and DEIMv2 (AP on COCO val2017); PaddleX
``paddlex/configs/modules``, ``repo_apis`` and ``docs/module_usage/tutorials``. All are Apache-2.0.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple, Optional


ASSETS = Path(__file__).parents[1] / "assets"
PADDLECLAS_URL = "https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/legendary_models/"
DFINE_URL = "https://github.com/Peterande/storage/releases/download/dfinev1.0/"
RTDETRV2_URL = "https://github.com/lyuwenyu/storage/releases/download/v0.1/"
PADDLEDETECTION_URL = "https://bj.bcebos.com/v1/paddledet/models/"
PADDLEDETECTION_BACKBONE_URL = "https://bj.bcebos.com/v1/paddledet/models/pretrained/"
PADDLEX_URL = "https://paddle-model-ecology.bj.bcebos.com/paddlex/official_pretrained_model/"
PADDLEDETECTION_H_BACKBONE_URL = "https://paddledet.bj.bcebos.com/models/pretrained/"
DEIM_PAGE = "https://github.com/Intellindust-AI-Lab/DEIM"
RTDETRV4_PAGE = "https://github.com/RT-DETRs/RT-DETRv4"


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
    ap: Optional[float] = None  # per cent, of detectors and multi-label classifiers: see ap_of
    url: Optional[str] = None  # None for what ships with this package, and where there is a page only
    page: Optional[str] = None  # where people find the file, whose address is no stable one (a shared drive)
    repo_id: Optional[str] = None  # on the Hub
    license: str = "apache-2.0"
    image_size: Optional[int] = None  # pixels per side, of detectors whose file does not show it
    ap_of: str = "AP on COCO val2017"


# What the rows of one program share. timm's short side of 232 is its own: a crop_pct of 0.965.
def _paddleclas(variant, file_name, top1, top5):
    url = PADDLECLAS_URL + file_name
    return Published(variant, file_name, "paddleclas", "classification", 236, 224, top1, top5, "imagenet-1k", url=url)


# PaddleX's own configurations resize to 232.
def _paddlex(variant, file_name, top1):
    url = PADDLEX_URL + file_name
    return Published(variant, file_name, "paddleclas", "classification", 232, 224, top1, None, "imagenet-1k", url=url)


def _paddlex_detector(variant, file_name, labels, image_size, ap, **ap_of):
    shared = {"labels": labels, "image_size": image_size, "ap": ap, "url": PADDLEX_URL + file_name, **ap_of}
    return Published(variant, file_name, "paddledetection", "detection", **shared)


def _document_detector(variant, file_name, labels, image_size, ap50):
    ap_of = "AP at an IoU of 0.5 on PaddleX's own images"
    return _paddlex_detector(variant, file_name, labels, image_size, ap50, ap_of=ap_of)


# PaddleClas ``ppcls/configs/ImageNet/PPHGNet``. Those of SSLD are not published; they get their variant's.
PP_HGNET_RESIZE_SHORT = {"tiny": 232, "small": 236, "base": 236}


def _pp_hgnet(variant, file_name, top1, top5):
    return _paddleclas(variant, file_name, top1, top5)._replace(resize_short=PP_HGNET_RESIZE_SHORT[variant])


def _multi_label(variant, file_name, ap):
    shared = {"labels": "coco", "ap": ap, "ap_of": "Mean AP of the labels on COCO 2017"}
    return Published(variant, file_name, "paddleclas", url=PADDLEX_URL + file_name, **shared)


def _timm(variant, repo_id, top1, top5):
    file_name = repo_id.removeprefix("timm/") + ".safetensors"
    url = "https://huggingface.co/" + repo_id + "/resolve/main/model.safetensors"
    shared = {"labels": "imagenet-1k", "url": url, "repo_id": repo_id}
    return Published(variant, file_name, "timm", "classification", 232, 224, top1, top5, **shared)


def _backbone(layout, base_url, variant, file_name):
    return Published(variant, file_name, layout, "backbone", url=base_url + file_name)


def _text(variant, file_name, layout="paddledetection"):
    return Published(variant, file_name, layout, "backbone", url=PADDLEX_URL + file_name)


def _detector(layout, base_url, variant, file_name, labels, ap):
    return Published(variant, file_name, layout, "detection", labels=labels, ap=ap, url=base_url + file_name)


def _by_hand(layout, page, variant, file_name, ap):
    return Published(variant, file_name, layout, "detection", labels="coco", ap=ap, page=page)


def _deimv2(variant, file_name, ap):
    repo_id = "Intellindust/" + file_name.removesuffix(".safetensors")
    url = f"https://huggingface.co/{repo_id}/resolve/main/model.safetensors"
    return Published(variant, file_name, "deimv2", "detection", labels="coco", ap=ap, url=url, repo_id=repo_id)


_dfine_backbone = partial(_backbone, "dfine", DFINE_URL)
_rtdetrv2_backbone = partial(_backbone, "rtdetrv2", RTDETRV2_URL)
_paddledetection_backbone = partial(_backbone, "paddledetection", PADDLEDETECTION_BACKBONE_URL)
_paddledetection_h_backbone = partial(_backbone, "paddledetection", PADDLEDETECTION_H_BACKBONE_URL)
_dfine = partial(_detector, "dfine", DFINE_URL)
_rtdetrv2 = partial(_detector, "rtdetrv2", RTDETRV2_URL)
_paddledetection = partial(_detector, "paddledetection", PADDLEDETECTION_URL)
_deim = partial(_by_hand, "deim", DEIM_PAGE)
_rtdetrv4 = partial(_by_hand, "rtdetrv4", RTDETRV4_PAGE)

# A row per checkpoint, written out so that a search for its name or its file finds it.
PUBLISHED = {
    # PaddleClas's classifiers: variant, file, top-1, top-5 (per cent).
    "PPHGNetV2_B0_ssld_stage2": _paddleclas("b0", "PPHGNetV2_B0_ssld_pretrained.pdparams", 77.77, 93.91),
    "PPHGNetV2_B0_ssld_stage1": _paddleclas("b0", "PPHGNetV2_B0_ssld_stage1_pretrained.pdparams", None, None),
    "PPHGNetV2_B1_ssld_stage2": _paddleclas("b1", "PPHGNetV2_B1_ssld_pretrained.pdparams", 79.18, 94.57),
    "PPHGNetV2_B1_ssld_stage1": _paddleclas("b1", "PPHGNetV2_B1_ssld_stage1_pretrained.pdparams", None, None),
    "PPHGNetV2_B2_ssld_stage2": _paddleclas("b2", "PPHGNetV2_B2_ssld_pretrained.pdparams", 81.74, 95.88),
    "PPHGNetV2_B2_ssld_stage1": _paddleclas("b2", "PPHGNetV2_B2_ssld_stage1_pretrained.pdparams", None, None),
    "PPHGNetV2_B3_ssld_stage2": _paddleclas("b3", "PPHGNetV2_B3_ssld_pretrained.pdparams", 82.98, 96.43),
    "PPHGNetV2_B3_ssld_stage1": _paddleclas("b3", "PPHGNetV2_B3_ssld_stage1_pretrained.pdparams", None, None),
    "PPHGNetV2_B4_ssld_stage2": _paddleclas("b4", "PPHGNetV2_B4_ssld_pretrained.pdparams", 83.57, 96.72),
    "PPHGNetV2_B4_ssld_stage1": _paddleclas("b4", "PPHGNetV2_B4_ssld_stage1_pretrained.pdparams", None, None),
    "PPHGNetV2_B5_ssld_stage2": _paddleclas("b5", "PPHGNetV2_B5_ssld_pretrained.pdparams", 84.75, 97.32),
    "PPHGNetV2_B5_ssld_stage1": _paddleclas("b5", "PPHGNetV2_B5_ssld_stage1_pretrained.pdparams", None, None),
    "PPHGNetV2_B6_ssld_stage2": _paddleclas("b6", "PPHGNetV2_B6_ssld_pretrained.pdparams", 86.30, 97.84),
    "PPHGNetV2_B6_ssld_stage1": _paddleclas("b6", "PPHGNetV2_B6_ssld_stage1_pretrained.pdparams", None, None),
    # PaddleX's classifiers: variant, file, top-1.
    "PP-HGNetV2-B0": _paddlex("b0", "PP-HGNetV2-B0_pretrained.pdparams", 77.77),
    "PP-HGNetV2-B1": _paddlex("b1", "PP-HGNetV2-B1_pretrained.pdparams", 79.18),
    "PP-HGNetV2-B2": _paddlex("b2", "PP-HGNetV2-B2_pretrained.pdparams", 81.74),
    "PP-HGNetV2-B3": _paddlex("b3", "PP-HGNetV2-B3_pretrained.pdparams", 82.98),
    "PP-HGNetV2-B4": _paddlex("b4", "PP-HGNetV2-B4_pretrained.pdparams", 83.57),
    "PP-HGNetV2-B5": _paddlex("b5", "PP-HGNetV2-B5_pretrained.pdparams", 84.75),
    "PP-HGNetV2-B6": _paddlex("b6", "PP-HGNetV2-B6_pretrained.pdparams", 86.30),
    # The same of PP-HGNet, the first version.
    "PPHGNet_tiny": _pp_hgnet("tiny", "PPHGNet_tiny_pretrained.pdparams", 79.83, 95.04),
    "PPHGNet_tiny_ssld": _pp_hgnet("tiny", "PPHGNet_tiny_ssld_pretrained.pdparams", 81.95, 96.12),
    "PPHGNet_small": _pp_hgnet("small", "PPHGNet_small_pretrained.pdparams", 81.51, 95.82),
    "PPHGNet_small_ssld": _pp_hgnet("small", "PPHGNet_small_ssld_pretrained.pdparams", 83.82, 96.81),
    "PPHGNet_base_ssld": _pp_hgnet("base", "PPHGNet_base_ssld_pretrained.pdparams", 85.00, 97.35),
    # PaddleX's multi-label classifiers, with an ML-Decoder: variant, file, mean AP of the labels.
    "PP-HGNetV2-B0_ML": _multi_label("b0", "PP-HGNetV2-B0_ML_pretrained.pdparams", 80.98),
    "PP-HGNetV2-B4_ML": _multi_label("b4", "PP-HGNetV2-B4_ML_pretrained.pdparams", 87.96),
    "PP-HGNetV2-B6_ML": _multi_label("b6", "PP-HGNetV2-B6_ML_pretrained.pdparams", 91.25),
    # timm's, which hold the same weights: variant, repository, top-1, top-5.
    "hgnetv2_b0.ssld_stage2_ft_in1k": _timm("b0", "timm/hgnetv2_b0.ssld_stage2_ft_in1k", 77.77, 93.91),
    "hgnetv2_b0.ssld_stage1_in22k_in1k": _timm("b0", "timm/hgnetv2_b0.ssld_stage1_in22k_in1k", None, None),
    "hgnetv2_b1.ssld_stage2_ft_in1k": _timm("b1", "timm/hgnetv2_b1.ssld_stage2_ft_in1k", 79.18, 94.57),
    "hgnetv2_b1.ssld_stage1_in22k_in1k": _timm("b1", "timm/hgnetv2_b1.ssld_stage1_in22k_in1k", None, None),
    "hgnetv2_b2.ssld_stage2_ft_in1k": _timm("b2", "timm/hgnetv2_b2.ssld_stage2_ft_in1k", 81.74, 95.88),
    "hgnetv2_b2.ssld_stage1_in22k_in1k": _timm("b2", "timm/hgnetv2_b2.ssld_stage1_in22k_in1k", None, None),
    "hgnetv2_b3.ssld_stage2_ft_in1k": _timm("b3", "timm/hgnetv2_b3.ssld_stage2_ft_in1k", 82.98, 96.43),
    "hgnetv2_b3.ssld_stage1_in22k_in1k": _timm("b3", "timm/hgnetv2_b3.ssld_stage1_in22k_in1k", None, None),
    "hgnetv2_b4.ssld_stage2_ft_in1k": _timm("b4", "timm/hgnetv2_b4.ssld_stage2_ft_in1k", 83.57, 96.72),
    "hgnetv2_b4.ssld_stage1_in22k_in1k": _timm("b4", "timm/hgnetv2_b4.ssld_stage1_in22k_in1k", None, None),
    "hgnetv2_b5.ssld_stage2_ft_in1k": _timm("b5", "timm/hgnetv2_b5.ssld_stage2_ft_in1k", 84.75, 97.32),
    "hgnetv2_b5.ssld_stage1_in22k_in1k": _timm("b5", "timm/hgnetv2_b5.ssld_stage1_in22k_in1k", None, None),
    "hgnetv2_b6.ssld_stage2_ft_in1k": _timm("b6", "timm/hgnetv2_b6.ssld_stage2_ft_in1k", 86.30, 97.84),
    "hgnetv2_b6.ssld_stage1_in22k_in1k": _timm("b6", "timm/hgnetv2_b6.ssld_stage1_in22k_in1k", None, None),
    "hgnet_tiny.paddle_in1k": _timm("tiny", "timm/hgnet_tiny.paddle_in1k", 79.83, 95.04),
    "hgnet_tiny.ssld_in1k": _timm("tiny", "timm/hgnet_tiny.ssld_in1k", 81.95, 96.12),
    "hgnet_small.paddle_in1k": _timm("small", "timm/hgnet_small.paddle_in1k", 81.51, 95.82),
    "hgnet_small.ssld_in1k": _timm("small", "timm/hgnet_small.ssld_in1k", 83.82, 96.81),
    # Without the dropout of PaddleClas's base, which scales its logits in evaluation: not the same figures.
    "hgnet_base.ssld_in1k": _timm("base", "timm/hgnet_base.ssld_in1k", None, None),
    # Backbones that detectors are trained from: variant, file.
    "PPHGNetV2_B0_stage1": _dfine_backbone("b0", "PPHGNetV2_B0_stage1.pth"),
    "PPHGNetV2_B1_stage1": _dfine_backbone("b1", "PPHGNetV2_B1_stage1.pth"),
    "PPHGNetV2_B2_stage1": _dfine_backbone("b2", "PPHGNetV2_B2_stage1.pth"),
    "PPHGNetV2_B3_stage1": _dfine_backbone("b3", "PPHGNetV2_B3_stage1.pth"),
    "PPHGNetV2_B4_stage1": _dfine_backbone("b4", "PPHGNetV2_B4_stage1.pth"),
    "PPHGNetV2_B5_stage1": _dfine_backbone("b5", "PPHGNetV2_B5_stage1.pth"),
    "PPHGNetV2_B6_stage1": _dfine_backbone("b6", "PPHGNetV2_B6_stage1.pth"),
    "PPHGNetV2_L_ssld_pretrained_from_paddle": _rtdetrv2_backbone("b4", "PPHGNetV2_L_ssld_pretrained_from_paddle.pth"),
    "PPHGNetV2_X_ssld_pretrained_from_paddle": _rtdetrv2_backbone("b5", "PPHGNetV2_X_ssld_pretrained_from_paddle.pth"),
    "PPHGNetV2_H_ssld_pretrained_from_paddle": _rtdetrv2_backbone("b6", "PPHGNetV2_H_ssld_pretrained_from_paddle.pth"),
    "PPHGNetV2_L_ssld_pretrained": _paddledetection_backbone("b4", "PPHGNetV2_L_ssld_pretrained.pdparams"),
    "PPHGNetV2_X_ssld_pretrained": _paddledetection_backbone("b5", "PPHGNetV2_X_ssld_pretrained.pdparams"),
    "PPHGNetV2_H_ssld_pretrained": _paddledetection_h_backbone("b6", "PPHGNetV2_H_ssld_pretrained.pdparams"),
    # PaddleX's networks that find and read text, of which the backbone converts: variant, file.
    "PP-OCRv5_server_det": _text("b4", "PP-OCRv5_server_det_pretrained.pdparams"),
    "PP-OCRv5_server_rec": _text("b4", "PP-OCRv5_server_rec_pretrained.pdparams"),
    "PP-OCRv4_server_det": _text("small", "PP-OCRv4_server_det_pretrained.pdparams", "paddleclas"),
    # D-FINE's detectors, on COCO, on Objects365 and then COCO, on Objects365: variant, file, labels, AP.
    "dfine_n_coco": _dfine("b0", "dfine_n_coco.pth", "coco", 42.8),
    "dfine_s_coco": _dfine("b0", "dfine_s_coco.pth", "coco", 48.5),
    "dfine_s_obj2coco": _dfine("b0", "dfine_s_obj2coco.pth", "coco", 50.7),
    "dfine_s_obj365": _dfine("b0", "dfine_s_obj365.pth", None, None),
    "dfine_m_coco": _dfine("b2", "dfine_m_coco.pth", "coco", 52.3),
    "dfine_m_obj2coco": _dfine("b2", "dfine_m_obj2coco.pth", "coco", 55.1),
    "dfine_m_obj365": _dfine("b2", "dfine_m_obj365.pth", None, None),
    "dfine_l_coco": _dfine("b4", "dfine_l_coco.pth", "coco", 54.0),
    "dfine_l_obj2coco_e25": _dfine("b4", "dfine_l_obj2coco_e25.pth", "coco", 57.3),
    "dfine_l_obj365": _dfine("b4", "dfine_l_obj365.pth", None, None),
    "dfine_x_coco": _dfine("b5", "dfine_x_coco.pth", "coco", 55.8),
    "dfine_x_obj2coco": _dfine("b5", "dfine_x_obj2coco.pth", "coco", 59.3),
    "dfine_x_obj365": _dfine("b5", "dfine_x_obj365.pth", None, None),
    # RT-DETRv2's and PaddleDetection's: variant, file, labels, AP.
    "rtdetrv2_hgnetv2_l_6x_coco_from_paddle": _rtdetrv2(
        "b4", "rtdetrv2_hgnetv2_l_6x_coco_from_paddle.pth", "coco", 52.9
    ),
    "rtdetr_hgnetv2_l_6x_coco": _paddledetection("b4", "rtdetr_hgnetv2_l_6x_coco.pdparams", "coco", 53.0),
    "rtdetrv2_hgnetv2_x_6x_coco_from_paddle": _rtdetrv2(
        "b5", "rtdetrv2_hgnetv2_x_6x_coco_from_paddle.pth", "coco", 54.7
    ),
    "rtdetr_hgnetv2_x_6x_coco": _paddledetection("b5", "rtdetr_hgnetv2_x_6x_coco.pdparams", "coco", 54.8),
    "rtdetrv2_hgnetv2_h_6x_coco_from_paddle": _rtdetrv2(
        "b6", "rtdetrv2_hgnetv2_h_6x_coco_from_paddle.pth", "coco", 56.3
    ),
    "rtdetr_hgnetv2_h_6x_coco": _paddledetection("b6", "rtdetr_hgnetv2_h_6x_coco.pdparams", "coco", 56.3),
    # PaddleX's, on COCO and on pages and tables of documents: variant, file, labels, pixels, AP.
    "RT-DETR-L": _paddlex_detector("b4", "RT-DETR-L_pretrained.pdparams", "coco", 640, 53.0),
    "RT-DETR-X": _paddlex_detector("b5", "RT-DETR-X_pretrained.pdparams", "coco", 640, 54.8),
    "RT-DETR-H": _paddlex_detector("b6", "RT-DETR-H_pretrained.pdparams", "coco", 640, 56.3),
    "PP-DocLayout-L": _document_detector("b4", "PP-DocLayout-L_pretrained.pdparams", "layout-23", 640, 90.4),
    "PP-DocLayout_plus-L": _document_detector("b4", "PP-DocLayout_plus-L_pretrained.pdparams", "layout-20", 800, 83.2),
    "RT-DETR-H_layout_3cls": _document_detector(
        "b6", "RT-DETR-H_layout_3cls_pretrained.pdparams", "layout-3", 640, 95.9
    ),
    "RT-DETR-H_layout_17cls": _document_detector(
        "b6", "RT-DETR-H_layout_17cls_pretrained.pdparams", "layout-17", 640, 98.3
    ),
    "RT-DETR-L_wired_table_cell_det": _document_detector(
        "b4", "RT-DETR-L_wired_table_cell_det_pretrained.pdparams", "table-cell", 640, 82.7
    ),
    "RT-DETR-L_wireless_table_cell_det": _document_detector(
        "b4", "RT-DETR-L_wireless_table_cell_det_pretrained.pdparams", "table-cell", 640, 82.7
    ),
    # DEIM's, RT-DETRv4's and DEIMv2's: variant, file, AP.
    "deim_dfine_hgnetv2_n_coco_160e": _deim("b0", "deim_dfine_hgnetv2_n_coco_160e.pth", 43.0),
    "deim_dfine_hgnetv2_s_coco_120e": _deim("b0", "deim_dfine_hgnetv2_s_coco_120e.pth", 49.0),
    "deim_dfine_hgnetv2_m_coco_90e": _deim("b2", "deim_dfine_hgnetv2_m_coco_90e.pth", 52.7),
    "deim_dfine_hgnetv2_l_coco_50e": _deim("b4", "deim_dfine_hgnetv2_l_coco_50e.pth", 54.7),
    "deim_dfine_hgnetv2_x_coco_50e": _deim("b5", "deim_dfine_hgnetv2_x_coco_50e.pth", 56.5),
    "RTv4-S-hgnet": _rtdetrv4("b0", "RTv4-S-hgnet.pth", 49.7),
    "RTv4-M-hgnet": _rtdetrv4("b2", "RTv4-M-hgnet.pth", 53.5),
    "RTv4-L-hgnet": _rtdetrv4("b4", "RTv4-L-hgnet.pth", 55.4),
    "RTv4-X-hgnet": _rtdetrv4("b5", "RTv4-X-hgnet.pth", 57.0),
    "DEIMv2_HGNetv2_ATTO_COCO": _deimv2("atto", "DEIMv2_HGNetv2_ATTO_COCO.safetensors", 23.8),
    "DEIMv2_HGNetv2_FEMTO_COCO": _deimv2("femto", "DEIMv2_HGNetv2_FEMTO_COCO.safetensors", 31.0),
    "DEIMv2_HGNetv2_PICO_COCO": _deimv2("pico", "DEIMv2_HGNetv2_PICO_COCO.safetensors", 38.5),
    "DEIMv2_HGNetv2_N_COCO": _deimv2("b0", "DEIMv2_HGNetv2_N_COCO.safetensors", 43.0),
    # Trained by this project (hgnetv2_hf/data/digits.py); ships with the package.
    "digits": Published("custom", "hgnetv2_digits.pdparams", "paddleclas", "classification", 32, 32, labels="digits"),
}


def find_published(path):
    """The name and the row of the published file with this name, or ``(None, None)``."""
    file_name = Path(path).name
    return next(((name, row) for name, row in PUBLISHED.items() if row.file_name == file_name), (None, None))


def published_name(text):
    """The name in the table that ``text`` means (``timm/…`` names the same checkpoint; capitals do not matter), or
    ``None``."""
    name = text.removeprefix("timm/")
    return name if name in PUBLISHED else _BY_LOWER_CASE.get(name.lower())


_BY_LOWER_CASE = {name.lower(): name for name in PUBLISHED}
