"""The command line, ``hgnetv2-hf``. Exit status: 0 done, 1 could not be done, 2 wrong usage."""

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import warnings

from .. import __version__
from ..benchmark.backends import DEFAULT_WAYS, WAYS
from ..model.variants import ALIASES, VARIANTS, canonical_name
from ..training.recipe import RECIPES


LAYOUT_NAMES = ["paddleclas", "paddledetection", "timm", "dfine", "rtdetrv2", "transformers"]


def main(argv=None):
    """Runs one command; returns its exit status."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.run is not _run_train:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.run is _run_train:
        arguments.training_arguments = _training_arguments(rest)
    try:
        with _ends_at_sigterm(), warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return arguments.run(arguments) or 0
    except KeyboardInterrupt:
        return _fail(f"interrupted{_CONTINUES.get(arguments.run, '')}.")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if _is_expected(error):
            return _fail(" ".join(str(error).split()))
        raise


@contextlib.contextmanager
def _ends_at_sigterm():
    """SIGTERM as an exception, so that unfinished folders are removed; afterwards as it was."""
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message):
    print(f"hgnetv2-hf: {message}", file=sys.stderr)
    return 1


def _show_warning(message, category, filename, lineno, file=None, line=None):
    """This package's own in one line; others as Python shows them."""
    if category.__module__.startswith(__package__):
        print(f"hgnetv2-hf: {message}", file=sys.stderr)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _is_expected(error):
    from ..errors import HGNetV2Error

    return isinstance(error, (HGNetV2Error, OSError))


def _parser():
    parser = argparse.ArgumentParser(prog="hgnetv2-hf", description="PP-HGNetV2 for Hugging Face Transformers.")
    parser.add_argument("--version", action="version", version=f"hgnetv2-hf {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_quickstart(commands)
    _add_list(commands)
    _add_convert(commands)
    _add_export_weights(commands)
    _add_classify(commands)
    _add_detect(commands)
    _add_export(commands)
    _add_benchmark(commands)
    _add_train(commands)
    _add_run(commands)
    return parser


def _command(commands, name, run, help):
    parser = commands.add_parser(name, help=help, description=help)
    parser.set_defaults(run=run)
    return parser


def _add_quickstart(commands):
    parser = _command(
        commands, "quickstart", _run_quickstart, "Convert the shipped checkpoint and classify real images, offline."
    )
    parser.add_argument(
        "--out", default="hgnetv2-digits", metavar="DIR", help="folder to write (default: %(default)s)"
    )


def _run_quickstart(arguments):
    from .quickstart import quickstart

    quickstart(arguments.out)


def _add_list(commands):
    parser = _command(
        commands, "list", _run_list, "List variants and published checkpoints with accuracy, size and address."
    )
    parser.add_argument("word", nargs="?", metavar="WORD", help="only this variant, layout or part of a name")
    parser.add_argument("--short", action="store_true", help="leave the addresses out")


def _run_list(arguments):
    from .listing import listing

    try:
        print(listing(arguments.word, arguments.short))
    except LookupError as error:
        return _fail(str(error))


def _add_convert(commands):
    parser = _command(
        commands, "convert", _run_convert, "Convert weights of PaddleClas and others into a Transformers folder."
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a weight file, a folder of timm or Transformers, or a published name (see `hgnetv2-hf list`)",
    )
    parser.add_argument("output_dir", metavar="OUT_DIR", help="the folder to write")
    names = ", ".join([*VARIANTS, *ALIASES])
    parser.add_argument("--variant", type=_variant, metavar="NAME", help=f"insist on a variant: {names}")
    parser.add_argument("--layout", choices=LAYOUT_NAMES, help="insist on a layout (default: recognised)")
    parser.add_argument(
        "--task", choices=["classification", "detection", "backbone"], help="default: what the file holds"
    )
    parser.add_argument(
        "--family",
        choices=["dfine", "deim", "rtdetrv4"],
        help="the program that a detector with D-FINE's tensors comes from, where neither its tensors nor a published name say",
    )
    parser.add_argument(
        "--resize-short",
        type=_pixels,
        metavar="PIXELS",
        help="short side before the crop (default: 236 for _ssld files of PaddleClas, else 232)",
    )
    parser.add_argument("--crop-size", type=_pixels, metavar="PIXELS", help="side of the crop (default: 224)")
    parser.add_argument(
        "--pool-padding",
        choices=["same", "zero"],
        help="stem max-pool: `same` as Paddle pads (default for PaddleClas, PaddleDetection and timm), or `zero` as timm's "
        "own code, D-FINE and RT-DETRv2 do (default for those two)",
    )
    parser.add_argument("--dropout", type=_probability, metavar="P", help="PaddleClas's dropout_prob (default: 0)")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="load the folder again, compare, and run the original program if installed",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model folder, atomically")
    add_push_arguments(parser, "REPO_ID", "upload the folder to this repository, user/name")


def add_push_arguments(parser, metavar, help):
    """``--push-to-hub``, ``--private`` and ``--create-pr``; the script that converts a whole set takes them too."""
    parser.add_argument("--push-to-hub", metavar=metavar, help=help)
    parser.add_argument("--private", action="store_true", help="create the repository private")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")


def _run_convert(arguments):
    from ..conversion import convert_checkpoint

    options = {name: value for name, value in vars(arguments).items() if name != "run"}
    print(convert_checkpoint(**options))


def _add_export_weights(commands):
    parser = _command(
        commands, "export-weights", _run_export_weights, "Write a folder's weights as another program names them."
    )
    parser.add_argument("folder", metavar="DIR", help="a converted or fine-tuned folder")
    parser.add_argument("output", metavar="OUT", help="the file to write: .pdparams, .safetensors, .pth, .pt or .bin")
    parser.add_argument("--layout", choices=["paddleclas", "timm", "dfine"], required=True)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def _run_export_weights(arguments):
    from ..conversion import export_weights

    try:
        print(export_weights(arguments.folder, arguments.output, arguments.layout, arguments.overwrite))
    except ValueError as error:
        print(f"hgnetv2-hf: {error}", file=sys.stderr)
        return 2


def _add_classify(commands):
    parser = _command(
        commands, "classify", _run_classify, "Label image files: a row per file, in order, at full speed."
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="files, folders or globs")
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a classifier's folder or repository, or a folder of `export`"
    )
    parser.add_argument("--output", metavar="FILE", help="a .csv, .jsonl or .parquet file (default: print the rows)")
    parser.add_argument(
        "--top-k", type=_pixels, default=5, metavar="K", help="labels per image (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=_pixels, default=16, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "auto"],
        default="float32",
        help="auto: bfloat16 where the device computes it natively, else float32 (default: float32)",
    )
    parser.add_argument("--compile", action="store_true", help="compile the network first")
    parser.add_argument("--workers", type=_pixels, metavar="N", help="threads that decode (default: one per core)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def _run_classify(arguments):
    from ..inference.classify import classify

    classify(**{name: value for name, value in vars(arguments).items() if name != "run"})


def _add_detect(commands):
    parser = _command(commands, "detect", _run_detect, "Find objects: annotated pictures and a table.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or globs")
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a detector's folder, or a repository on the Hub"
    )
    parser.add_argument("--output", required=True, metavar="OUT", help="the folder to write")
    parser.add_argument("--threshold", type=_probability, default=0.5, metavar="P", help="default: %(default)s")
    parser.add_argument("--table", choices=["csv", "jsonl"], default="csv", help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder of this command")


def _run_detect(arguments):
    from ..inference.detect import detect

    detect(
        arguments.images,
        arguments.model,
        arguments.output,
        threshold=arguments.threshold,
        table=arguments.table,
        overwrite=arguments.overwrite,
    )


def _add_export(commands):
    parser = _command(commands, "export", _run_export, "Export a folder for ONNX Runtime, OpenVINO or ExecuTorch.")
    parser.add_argument("folder", metavar="DIR", help="a converted or fine-tuned folder, or a repository on the Hub")
    parser.add_argument("output_dir", metavar="OUT", help="the folder to write")
    parser.add_argument("--format", choices=["onnx", "openvino", "executorch"], required=True)
    parser.add_argument("--int8", action="store_true", help="quantise after training; needs --calibration")
    parser.add_argument("--calibration", metavar="FOLDER", help="images like those to come")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder of this command")


def _run_export(arguments):
    from ..inference.export import export_model

    options = {name: value for name, value in vars(arguments).items() if name != "run"}
    print(export_model(**options))


def _add_benchmark(commands):
    parser = _command(
        commands,
        "benchmark",
        _run_benchmark,
        "Time this package against Transformers' own model, in turn, in one run.",
    )
    parser.add_argument("--variant", type=_variant, nargs="+", default=["b0"], metavar="NAME")
    parser.add_argument("--batch-size", type=_pixels, nargs="+", default=[8], metavar="N")
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=WAYS,
        default=DEFAULT_WAYS,
        metavar="WAY",
        help=f"of: {', '.join(WAYS)} (default: {' '.join(DEFAULT_WAYS)})",
    )
    parser.add_argument("--image-size", type=_pixels, default=224, metavar="PIXELS")
    parser.add_argument(
        "--rounds", type=_pixels, default=10, help="half-second blocks per model (default: %(default)s)"
    )
    parser.add_argument("--threads", type=_pixels, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    parser.add_argument("--plot", metavar="FILE.png", help="draw latency against published accuracy")
    parser.add_argument(
        "--conversion",
        action="store_true",
        help="instead, time the conversion of a .pdparams file and its peak memory",
    )

    parser.add_argument(
        "--training", action="store_true", help="instead, time training steps and measure the memory they add"
    )


def _run_benchmark(arguments):
    from ..benchmark.inference import benchmark, benchmark_conversion, check_plot, plot, table

    if arguments.conversion:
        print(benchmark_conversion(arguments.variant))
        return
    if arguments.training:
        from ..benchmark import training as benchmark_training

        sizes = arguments.batch_size, arguments.image_size, arguments.rounds
        result = benchmark_training.benchmark_training(arguments.variant, *sizes)
        print(benchmark_training.table(result))
        _write_json(result, arguments.json)
        return
    if arguments.plot:
        check_plot(arguments.plot)
    result = benchmark(
        variants=arguments.variant,
        batch_sizes=arguments.batch_size,
        ways=arguments.ways,
        image_size=arguments.image_size,
        rounds=arguments.rounds,
        threads=arguments.threads,
    )
    print(table(result))
    if arguments.plot:
        plot(result, arguments.plot)
    _write_json(result, arguments.json)


def _write_json(result, path):
    from ..files.atomic import atomic_file

    if path:
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _add_train(commands):
    parser = _command(
        commands,
        "train",
        _run_train,
        "Train or fine-tune a classifier; every option of TrainingArguments works too.",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _TRAINING_EPILOG
    parser.add_argument(
        "data", metavar="DATA", help="a folder with a folder per class, a name for `datasets`, or digits"
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="a classifier's folder or repository, a weight file, a published name, or a variant, which starts afresh",
    )
    parser.add_argument("--output", dest="output_dir", required=True, metavar="OUT", help="the folder to write")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an existing folder, or another interrupted run"
    )
    parser.add_argument(
        "--recipe",
        choices=["auto", "small", "imagenet"],
        help="the defaults of what follows: for small data, or PaddleClas's for ImageNet (default: auto, by the images seen)",
    )
    parser.add_argument("--teacher", metavar="DIR", help="learn this classifier's answers instead of labels (SSLD)")
    parser.add_argument(
        "--distillation-loss", choices=["ce", "kl"], help="soft cross entropy (default) or symmetric KL"
    )
    parser.add_argument("--from-scratch", action="store_true", help="fresh weights, whatever the folder holds")
    parser.add_argument("--compare-from-scratch", action="store_true", help="train a second time so, and report both")
    parser.add_argument(
        "--head", choices=["auto", "keep", "new"], help="the last layer (default: auto, by the labels)"
    )
    parser.add_argument("--image-size", type=_pixels, metavar="PIXELS", help="default: the image processor's")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="a subset of the classes")
    parser.add_argument(
        "--images-per-class", type=_pixels, metavar="N", help="the first training images of each class"
    )
    parser.add_argument(
        "--validation-fraction",
        type=_probability,
        metavar="P",
        help="held out where DATA has no validation (default: 0.1)",
    )
    parser.add_argument(
        "--class-folders",
        choices=["outer", "inner"],
        help="which folders are the classes where DATA has folders in folders",
    )
    for name in ("image-column", "label-column", "config-name"):
        parser.add_argument(f"--{name}", metavar="NAME", help="of a data set of `datasets`")
    parser.add_argument("--streaming", action="store_true", help="read such a data set as a stream; needs --max_steps")
    parser.add_argument("--no-check", dest="check", action="store_false", help="do not decode every image beforehand")
    parser.add_argument(
        "--draw-data", type=_pixels, metavar="N", help="draw N images, as evaluated and as learnt from"
    )
    parser.add_argument(
        "--crop-scale",
        type=float,
        nargs=2,
        metavar=("MIN", "MAX"),
        help=f"of the random crop ({_by_recipe('crop_scale')})",
    )
    parser.add_argument(
        "--shift", type=float, metavar="P", help=f"of the crop, beyond the image's border ({_by_recipe('shift')})"
    )
    parser.add_argument(
        "--flip", type=float, metavar="P", help=f"probability of a horizontal flip ({_by_recipe('flip')})"
    )
    parser.add_argument(
        "--rand-augment", metavar="TEXT", help=f"timm's notation, or none ({_by_recipe('rand_augment')})"
    )
    parser.add_argument(
        "--random-erasing", type=float, metavar="P", help=f"{_by_recipe('random_erasing')}; 0 with a teacher"
    )
    parser.add_argument("--class-weights", action="store_true", help="rare classes count as much as frequent ones")
    parser.add_argument(
        "--early-stopping", type=_pixels, metavar="N", help="stop after N evaluations without a better accuracy"
    )
    parser.add_argument("--warmup-epochs", type=float, metavar="N", help=_by_recipe("warmup_epochs"))
    parser.add_argument(
        "--lr-mult-list", type=float, nargs="+", metavar="X", help="multipliers of the rate: stem, stage 1, stage 2, …"
    )
    parser.add_argument("--lab-lr-mult", type=float, metavar="X", help="LAB's rate in its layer's (default: 0.01)")
    parser.add_argument("--exempt-biases-and-lab", action="store_true", help="no decay for these either")
    parser.add_argument("--freeze-at", type=int, metavar="N", help="0: the stem, and with --freeze-stages stage 1, …")
    parser.add_argument(
        "--freeze-stages",
        dest="freeze_stem_only",
        action="store_false",
        help="--freeze-at counts stages, not only the stem",
    )
    parser.add_argument("--freeze-norm", action="store_true", help="batch norm computes as in evaluation")
    parser.add_argument("--drop-path", type=_probability, metavar="P", help="stochastic depth (default: 0)")
    parser.add_argument("--ema", type=_probability, metavar="DECAY", help="keep an exponential moving average")
    parser.add_argument(
        "--no-channels-last", dest="channels_last", action="store_false", help="keep PyTorch's own layout"
    )


def _by_recipe(field):
    """The default of an option in each recipe."""

    def text(value):
        return " ".join(f"{each:g}" for each in value) if isinstance(value, tuple) else value

    return ", ".join(f"{name}: {text(getattr(row, field))}" for name, row in RECIPES.items())


_TRAINING_EPILOG = f"""\
of TrainingArguments (python -c "import transformers; help(transformers.TrainingArguments)"), most wanted:
  --num_train_epochs N               {_by_recipe("epochs")}
  --per_device_train_batch_size N    {_by_recipe("batch_size")}
  --learning_rate X                  printed before training starts; grows with the batch size
  --optim NAME                       sgd (with momentum 0.9); adamw_torch, …
  --weight_decay X                   2e-05 with sgd, else 0.05
  --max_steps N                      instead of epochs
  --seed N                           42
  --bf16, --gradient_checkpointing, --gradient_accumulation_steps N, --use_cpu, --report_to tensorboard
  --push_to_hub, --hub_model_id USER/NAME"""


def _training_arguments(rest):
    """The options of ``TrainingArguments`` that were given, by name. Anything else is wrong usage."""
    from transformers import HfArgumentParser, TrainingArguments

    parser = HfArgumentParser(TrainingArguments, prog="hgnetv2-hf train", add_help=False, allow_abbrev=False)
    for action in parser._actions:
        action.default = argparse.SUPPRESS
        action.required = False
    given = vars(parser.parse_args(rest))
    if "output_dir" in given:
        parser.error("--output names the folder")
    return given


def _run_train(arguments):
    from ..training import Options, train

    given = {name: value for name, value in vars(arguments).items() if value is not None}
    options = Options(**{name: value for name, value in given.items() if hasattr(Options, name)})
    result = train(
        given["data"], given["model"], given["output_dir"], options, given["overwrite"], **given["training_arguments"]
    )
    if int(os.environ.get("RANK", 0)) == 0:
        print(result)


# What is told to those who interrupt a command that leaves something to continue from.
_CONTINUES = {
    _run_train: "; the same command continues after the last checkpoint",
    _run_classify: "; with --output, the same command continues after the last row",
}


def _add_run(commands):
    parser = _command(commands, "run", _run_script, "Run any Transformers script with this package registered.")
    parser.add_argument("script", metavar="SCRIPT", help="a Python file")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS", help="its arguments")


def _run_script(arguments):
    from .run_script import run_script

    run_script(arguments.script, arguments.arguments)


def _variant(text):
    try:
        return canonical_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _pixels(text):
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return value


def _probability(text):
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a probability of at least 0 and below 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
