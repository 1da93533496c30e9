"""``hgnetv2-hf detect IMAGE… --model DIR --output OUT``: annotated pictures and a table."""

from ._framework import add_batch_arguments, add_command, positive_integer, probability


def add(commands):
    parser = add_command(commands, "detect", "Find objects: annotated pictures and a table, at full speed.")
    parser.add_argument("paths", nargs="+", metavar="IMAGE", help="files, folders or globs; or one video")
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a detector's folder or repository, or a folder of `export`"
    )
    parser.add_argument(
        "--output", required=True, metavar="OUT", dest="output_dir",
        help="the folder to write; the same command continues after an interruption",
    )  # fmt: skip
    parser.add_argument("--threshold", type=probability, default=0.5, metavar="P", help="default: %(default)s")
    parser.add_argument(
        "--top-k", type=positive_integer, metavar="K", help="objects per image, the surest (default: all)"
    )
    parser.add_argument(
        "--format", "--table", choices=["csv", "jsonl", "coco"], default="csv",
        help="of the table; coco: results for the COCO tools (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--no-pictures", dest="pictures", action="store_false", help="write the table alone")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "auto"],
        default="float32",
        help="auto: bfloat16 where the device computes it natively, else float32 (default: %(default)s)",
    )
    add_batch_arguments(parser, batch_size=4, threads="decode and draw")
    return parser


def run(arguments):
    from ..inference.detect import detect

    detect(**vars(arguments))
