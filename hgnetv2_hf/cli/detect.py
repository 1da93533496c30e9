"""``hgnetv2-hf detect IMAGE… --model DIR --output OUT``: annotated pictures and a table."""

from ._framework import add_command, probability


def add(commands):
    parser = add_command(commands, "detect", "Find objects: annotated pictures and a table.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or globs")
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a detector's folder, or a repository on the Hub"
    )
    parser.add_argument("--output", required=True, metavar="OUT", help="the folder to write")
    parser.add_argument("--threshold", type=probability, default=0.5, metavar="P", help="default: %(default)s")
    parser.add_argument("--table", choices=["csv", "jsonl"], default="csv", help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder of this command")
    return parser


def run(arguments):
    from ..inference.detect import detect

    detect(
        arguments.images,
        arguments.model,
        arguments.output,
        threshold=arguments.threshold,
        table=arguments.table,
        overwrite=arguments.overwrite,
    )
