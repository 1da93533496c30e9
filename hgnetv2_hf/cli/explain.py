"""``hgnetv2-hf explain IMAGE… --model DIR --output OUT``: heat maps."""

from ._framework import add_batch_arguments, add_command


def add(commands):
    parser = add_command(commands, "explain", "Draw where a classifier sees a class (Grad-CAM): pictures and a table.")
    parser.add_argument("paths", nargs="+", metavar="IMAGE", help="files, folders or globs")
    parser.add_argument("--model", required=True, metavar="DIR", help="a classifier's folder or repository")
    parser.add_argument("--output", required=True, metavar="OUT", dest="output_dir", help="the folder to write")
    parser.add_argument("--target", metavar="LABEL", help="the class to look for (default: each image's best)")
    parser.add_argument(
        "--layer", default="stage4", metavar="LAYER",
        help="stem, stage1, …: earlier ones are finer, later ones surer (default: %(default)s)",
    )  # fmt: skip
    add_batch_arguments(parser, batch_size=8, threads="decode and draw")
    return parser


def run(arguments):
    from ..inference.explain import explain

    explain(**vars(arguments))
