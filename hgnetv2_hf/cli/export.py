"""``hgnetv2-hf export DIR OUT --format …``: a folder for another runtime."""

from ._framework import add_command


def add(commands):
    parser = add_command(commands, "export", "Export a folder for ONNX Runtime, OpenVINO or ExecuTorch.")
    parser.add_argument("folder", metavar="DIR", help="a converted or fine-tuned folder, or a repository on the Hub")
    parser.add_argument("output_dir", metavar="OUT", help="the folder to write")
    parser.add_argument("--format", choices=["onnx", "openvino", "executorch"], required=True)
    parser.add_argument("--int8", action="store_true", help="quantise after training; needs --calibration")
    parser.add_argument("--calibration", metavar="FOLDER", help="images like those to come")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder of this command")
    return parser


def run(arguments):
    from ..inference.export import export_model

    print(export_model(**vars(arguments)))
