"""``hgnetv2-hf classify PATH… --model DIR``: a row per image."""

from ._framework import add_command, add_source_arguments, positive_integer, probability


CONTINUES = "; with --output, the same command continues after the last row"


def add(commands):
    parser = add_command(commands, "classify", "Label image files: a row per file, in order, at full speed.")
    add_source_arguments(parser)
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a classifier's folder or repository, or a folder of `export`"
    )
    parser.add_argument(
        "--output", metavar="OUT",
        help="a .csv, .jsonl or .parquet file; or a folder or its URL, for files of Parquet (default: print the rows)",
    )  # fmt: skip
    parser.add_argument(
        "--top-k", type=positive_integer, default=5, metavar="K", help="labels per image (default: %(default)s)"
    )
    parser.add_argument(
        "--threshold", type=probability, default=0.0, metavar="P",
        help="leave labels out whose score is below it; 0.5 is usual for several labels (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=positive_integer, default=16, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "auto"],
        default="float32",
        help="auto: bfloat16 where the device computes it natively, else float32 (default: %(default)s)",
    )
    parser.add_argument("--compile", action="store_true", help="compile the network first")
    parser.add_argument(
        "--workers", type=positive_integer, metavar="N", help="threads that decode (default: one per core)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser


def run(arguments):
    from ..inference.classify import classify

    classify(**vars(arguments))
