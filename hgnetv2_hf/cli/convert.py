"""``hgnetv2-hf convert SOURCE OUT_DIR``: a folder that Transformers loads."""

from ..model.variants import ALIASES, ALL_VARIANTS
from ._framework import add_command, positive_integer, probability, variant


LAYOUT_NAMES = ["paddleclas", "paddledetection", "timm", "timm_features", "dfine", "rtdetrv2", "keras", "transformers"]


def add(commands):
    parser = add_command(commands, "convert", "Convert weights of PaddleClas and others into a Transformers folder.")
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a weight file, an exported model of Paddle, a folder of timm, KerasHub or Transformers, or a published "
        "name (see `hgnetv2-hf list`)",
    )
    parser.add_argument("output_dir", metavar="OUT_DIR", help="the folder to write")
    names = ", ".join([*ALL_VARIANTS, *ALIASES])
    parser.add_argument("--variant", type=variant, metavar="NAME", help=f"insist on a variant: {names}")
    parser.add_argument("--layout", choices=LAYOUT_NAMES, help="insist on a layout (default: recognised)")
    parser.add_argument(
        "--task", choices=["classification", "detection", "backbone"], help="default: what the file holds"
    )
    parser.add_argument(
        "--family",
        choices=["dfine", "deim", "rtdetrv4", "deimv2"],
        help="the program that a detector with D-FINE's tensors comes from, where neither its tensors nor a "
        "published name say",
    )
    parser.add_argument(
        "--weights",
        metavar="NAME",
        help="which weights of a file with several: ema, model, student, teacher, or a place such as state_dict_ema "
        "(default: averaged ones before others, a student before its teacher)",
    )
    parser.add_argument(
        "--resize-short",
        type=positive_integer,
        metavar="PIXELS",
        help="short side before the crop (default: 236 for PaddleClas's _ssld files, small and base; else 232)",
    )
    parser.add_argument("--crop-size", type=positive_integer, metavar="PIXELS", help="side of the crop (default: 224)")
    parser.add_argument(
        "--pool-padding",
        choices=["same", "zero"],
        help="stem max-pool: `same` as Paddle pads (default for PaddleClas, PaddleDetection and timm), or `zero` as "
        "timm's own code, D-FINE and RT-DETRv2 do (default for those two)",
    )
    parser.add_argument(
        "--num-queries", type=positive_integer, metavar="N", help="of a detector (default: what its authors publish)"
    )
    parser.add_argument(
        "--image-size",
        type=positive_integer,
        metavar="PIXELS",
        help="resize to a square, without a crop (default: 448 for ML-Decoder classifiers)",
    )
    parser.add_argument(
        "--num-labels", type=positive_integer, metavar="N", help="of an ML-Decoder with fewer queries than labels"
    )
    parser.add_argument(
        "--num-heads", type=positive_integer, metavar="N", help="of an ML-Decoder's attention (default: 8)"
    )
    parser.add_argument(
        "--dropout", type=probability, metavar="P", help="PaddleClas's dropout_prob (default: 0; 0.2 for base)"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="load the folder again, compare, and run the original program if installed",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model folder, atomically")
    add_push_arguments(parser, "REPO_ID", "upload the folder to this repository, user/name")
    return parser


def add_push_arguments(parser, metavar, help):
    """``--push-to-hub``, ``--private`` and ``--create-pr``; the script that converts a whole set takes them too."""
    parser.add_argument("--push-to-hub", metavar=metavar, help=help)
    parser.add_argument("--private", action="store_true", help="create the repository private")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")


def run(arguments):
    from ..conversion import convert_checkpoint

    print(convert_checkpoint(**vars(arguments)))
