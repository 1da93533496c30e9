"""``hgnetv2-hf export-weights DIR OUT``: the way back, to a weight file of another program."""

from ._framework import add_command, fail


LAYOUT_NAMES = ["paddleclas", "timm", "keras", "dfine", "deim", "rtdetrv4", "deimv2"]


def add(commands):
    parser = add_command(commands, "export-weights", "Write a folder's weights as another program names them.")
    parser.add_argument("folder", metavar="DIR", help="a converted or fine-tuned folder")
    parser.add_argument(
        "output",
        metavar="OUT",
        help="the file to write: .pdparams, .safetensors, .pth, .pt or .bin; of KerasHub, a folder",
    )
    parser.add_argument("--layout", choices=LAYOUT_NAMES, required=True)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser


def run(arguments):
    from ..conversion import export_weights

    try:
        print(export_weights(arguments.folder, arguments.output, arguments.layout, arguments.overwrite))
    except ValueError as error:  # an option that does not go with the others
        return fail(error, status=2)
