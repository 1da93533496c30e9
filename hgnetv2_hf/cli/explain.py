"""``hgnetv2-hf explain IMAGE… --model DIR --output OUT``: heat maps."""

from ._framework import add_command, positive_integer


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
    parser.add_argument("--batch-size", type=positive_integer, default=8, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--workers", type=positive_integer, metavar="N", help="threads that decode and draw (default: one per core)"
    )
    parser.add_argument("--device", metavar="DEVICE", help="default: the GPU, if there is one")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder of this command")
    return parser


def run(arguments):
    from ..inference.explain import explain

    explain(**vars(arguments))
