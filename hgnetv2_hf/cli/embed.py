"""``hgnetv2-hf embed PATH… --model DIR --output OUT``: a vector per image, as Parquet."""

from ._framework import add_batch_arguments, add_command, add_source_arguments


CONTINUES = "; the same command continues after the last part of 4096 rows"


def add(commands):
    parser = add_command(commands, "embed", "Write pooled features of image files as Parquet, at full speed.")
    add_source_arguments(parser)
    parser.add_argument(
        "--model", required=True, metavar="DIR",
        help="a classifier's or backbone's folder or repository, or an exported backbone",
    )  # fmt: skip
    parser.add_argument(
        "--output", required=True, metavar="OUT", dest="output_dir", help="the folder to write, or its URL"
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "auto"],
        default="float32",
        help="of the network; auto: bfloat16 where the device computes it natively (default: %(default)s)",
    )
    parser.add_argument(
        "--stored-dtype", choices=["float32", "float16"], default="float32",
        help="of the features in the files (default: %(default)s)",
    )  # fmt: skip
    add_batch_arguments(parser, batch_size=16, threads="decode")
    return parser


def run(arguments):
    from ..inference.embed import embed

    embed(**vars(arguments))
