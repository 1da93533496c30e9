"""The options of `train-detector` beside `TrainingArguments`."""

import dataclasses
from typing import Optional

from ..options import describe_fields, option
from .recipe import NAMES, SMALL


@dataclasses.dataclass
class DetectorOptions:
    """What [`train_detector`] takes beside `TrainingArguments`."""

    recipe: str = option(
        "auto",
        "the defaults of what follows: the authors' for COCO, or for small data (default: %(default)s, by the images)",
        choices=NAMES,
    )
    backbone: Optional[str] = option(
        None,
        "a classifier's or backbone's weights for a fresh detector",
        metavar="DIR",
        details="; see `build_detector`",
    )
    family: Optional[str] = option(
        None,
        "which program a weight file is from, where its tensors do not show it",
        choices=("dfine", "deim", "rtdetrv4", "deimv2"),
    )
    image_size: Optional[int] = option(
        None, "pixels per side, a multiple of 32 (default: the image processor's; fresh: its authors')",
        metavar="PIXELS",
        range="positive",
    )  # fmt: skip
    num_queries: Optional[int] = option(
        None,
        "objects that an image can have (default: the model's; fresh: its authors')",
        metavar="N",
        range="positive",
    )
    format: Optional[str] = option(
        None, "of DATA, where it can be read in two ways", choices=("coco", "yolo", "voc", "datasets")
    )
    box_format: Optional[str] = option(None, "of a COCO file's or a data set's boxes", choices=("xywh", "xyxy"))
    config_name: Optional[str] = option(None, "of a data set of `datasets`", metavar="NAME")
    image_column: Optional[str] = option(None, "of a data set of `datasets`", metavar="NAME")
    objects_column: Optional[str] = option(None, "of a data set of `datasets`", metavar="NAME")
    validation_fraction: float = option(
        0.1, "held out where DATA has no validation part (default: %(default)s)", metavar="P", range="probability",
        details="; 0 for none",
    )  # fmt: skip
    check: bool = option(True, "do not decode every image beforehand")
    photometric: Optional[float] = option(None, "probability of other colours (0.5)", metavar="P", range="share")
    zoom_out: Optional[float] = option(
        None, "probability of a smaller image on black (0.5)", metavar="P", range="share"
    )
    crop: Optional[float] = option(None, "probability of a crop around objects (0.8)", metavar="P", range="share")
    flip: Optional[float] = option(None, "probability of a horizontal flip (0.5)", metavar="P", range="share")
    mosaic: Optional[float] = option(
        None, "probability of four images in one (0.5 of DEIM and its families, 0 of others)", metavar="P",
        range="share",
    )  # fmt: skip
    mixup: Optional[float] = option(
        None, "probability that the images of a step are mixed in pairs (as --mosaic)", metavar="P", range="share"
    )
    strong_until: Optional[float] = option(
        None,
        "epochs with these, but the flip (coco: the authors'; small: "
        f"{SMALL.strong_share:g} of them, none below {SMALL.strong_from:,} steps)",
        metavar="EPOCHS",
        range="not negative",
    )
    multi_scale: Optional[str] = option(
        None, "images of several sizes until then (coco: the authors'; small: no)", choices=("yes", "no")
    )
    backbone_rate: Optional[float] = option(None, "learning rate of the backbone", metavar="X", range="not negative")
    backbone_norm: Optional[str] = option(
        None, "whether the backbone's batch norm learns (default: as the authors train this size)",
        choices=("train", "freeze"),
    )  # fmt: skip
    ema: Optional[float] = option(
        None,
        f"decay of the moving average that is evaluated and saved (coco: 0.9999, small: {SMALL.ema:g})",
        metavar="DECAY",
        range="probability",
    )
    draw_data: Optional[int] = option(
        None, "draw N augmented training images with their boxes", metavar="N", range="positive"
    )
    early_stopping: Optional[int] = option(
        None, "stop after N evaluations without a better AP", metavar="N", range="positive"
    )
    threshold: float = option(
        0.5, "of the scores in the example pictures (default: %(default)s)", metavar="P", range="share"
    )


describe_fields(DetectorOptions)
