"""``hgnetv2-hf export DIR OUT --format …``: a folder for another runtime."""

from ._framework import add_command, positive_integer


def add(commands):
    parser = add_command(commands, "export", "Export a folder for ONNX Runtime, OpenVINO, phones or Transformers.js.")
    parser.add_argument("folder", metavar="DIR", help="a converted or fine-tuned folder, or a repository on the Hub")
    parser.add_argument("output_dir", metavar="OUT", help="the folder to write")
    parser.add_argument(
        "--format",
        choices=["onnx", "openvino", "executorch", "litert", "ncnn", "coreml", "transformers-js"],
        required=True,
    )
    parser.add_argument(
        "--half", action="store_true", help="float16, where it does not overflow (onnx, openvino, transformers-js)"
    )
    parser.add_argument("--int8", action="store_true", help="quantise after training; needs --calibration")
    parser.add_argument("--calibration", metavar="FOLDER", help="images like those to come")
    parser.add_argument(
        "--end-to-end", action="store_true", help="a detector's labels, boxes and scores in a further file"
    )
    parser.add_argument(
        "--batch-size", type=positive_integer, metavar="N", help="fix it (default: any number of images)"
    )
    parser.add_argument(
        "--image-size", type=positive_integer, nargs=2, metavar=("H", "W"), help="fix it (default: any size)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder of this command")
    return parser


def run(arguments):
    from ..inference.export import export_model

    print(export_model(**vars(arguments)))
