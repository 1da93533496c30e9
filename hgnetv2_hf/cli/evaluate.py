"""``hgnetv2-hf evaluate MODEL… DATA``: figures, speed, pictures."""

from ._framework import add_command, positive_integer, probability


_HELP = (
    "Measure classifiers (accuracy, calibration) or detectors (COCO's figures) on labelled images, and their speed."
)


def add(commands):
    parser = add_command(commands, "evaluate", _HELP)
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="classifiers or detectors: folders or repositories, also folders of `export`; several make one table",
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="image folder, name for `datasets` or digits; for detectors COCO, YOLO, Pascal VOC or `datasets`",
    )
    parser.add_argument(
        "--part", choices=["validation", "train", "all"], default="validation", help="default: %(default)s"
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "auto"],
        default="float32",
        help="auto: bfloat16 where the device computes it natively, else float32 (default: %(default)s)",
    )
    parser.add_argument("--batch-size", type=positive_integer, default=16, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--output", dest="output_dir", metavar="DIR", help="a folder to write: metrics, a row per image, pictures"
    )
    parser.add_argument(
        "--threshold",
        type=probability,
        default=0.5,
        metavar="P",
        help="score of the detections that rows, confusion and pictures count (default: %(default)s)",
    )
    parser.add_argument("--limit", type=positive_integer, metavar="N", help="so many images, evenly spread")
    parser.add_argument("--device", metavar="NAME", help="such as cpu or cuda (default: the GPU, if there is one)")
    parser.add_argument(
        "--workers", type=positive_integer, metavar="N", help="threads that decode (default: one per core)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder of this command")
    parser.add_argument(
        "--validation-fraction",
        type=probability,
        default=0.0,
        metavar="P",
        help="hold out this share where DATA has no validation part, as a training with the same seed did",
    )
    parser.add_argument("--seed", type=int, default=42, metavar="N", help="of what is held out (default: %(default)s)")
    parser.add_argument(
        "--class-folders", choices=["outer", "inner"], help="which folders are the classes of a classifier's data"
    )
    parser.add_argument(
        "--format",
        dest="data_format",
        choices=["coco", "yolo", "voc", "datasets"],
        help="of a detector's data, where they can be read in two ways",
    )
    parser.add_argument(
        "--box-format", choices=["xywh", "xyxy"], help="how a COCO file or a column of `datasets` spells its boxes"
    )
    for name, meaning in (("config-name", "configuration"), ("image-column", "images")):
        parser.add_argument(f"--{name}", metavar="NAME", help=f"{meaning} of a data set of `datasets`")
    parser.add_argument("--label-column", metavar="NAME", help="classes of a classifier's data set of `datasets`")
    parser.add_argument("--objects-column", metavar="NAME", help="boxes of a detector's data set of `datasets`")
    return parser


def run(arguments):
    from ..inference.evaluate import evaluate

    options = dict(vars(arguments))
    evaluate(options.pop("models"), options.pop("data"), **options)
