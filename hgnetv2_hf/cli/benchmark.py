"""``hgnetv2-hf benchmark``: this package against Transformers' own model, in one run."""

import argparse
import json

from ..benchmark.backends import BACKENDS, DEFAULT_BACKENDS
from ..errors import HGNetV2Error
from ..model.variants import canonical_name
from ._framework import add_command, positive_integer


def add(commands):
    parser = add_command(
        commands, "benchmark", "Time this package against Transformers' own model, in turn, in one run."
    )
    parser.add_argument(
        "--task", choices=["classification", "detection"], default="classification", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--variant",
        nargs="+",
        metavar="NAME",
        help="b0 … b6, or detectors: dfine-n, rtdetr-l, … (default: b0, dfine-n)",
    )
    parser.add_argument(
        "--batch-size", type=positive_integer, nargs="+", metavar="N", help="images per call (default: 8; detection 1)"
    )
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=BACKENDS,
        default=DEFAULT_BACKENDS,
        metavar="BACKEND",
        help=f"of: {', '.join(BACKENDS)} (default: {' '.join(DEFAULT_BACKENDS)})",
    )
    # The name of --backends in the first release; commands that were written down keep working.
    parser.add_argument(
        "--ways",
        dest="backends",
        nargs="+",
        choices=BACKENDS,
        default=argparse.SUPPRESS,
        metavar="BACKEND",
        help=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--image-size", type=positive_integer, metavar="PIXELS", help="per side (default: 224; detection 640)"
    )
    parser.add_argument(
        "--photos", metavar="FOLDER", help="of a detector, from these image files to boxes too, images per second"
    )
    parser.add_argument(
        "--rounds", type=positive_integer, default=10, help="half-second blocks per model (default: %(default)s)"
    )
    parser.add_argument("--threads", type=positive_integer, help="CPU threads (default: PyTorch's)")
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
    return parser


def run(arguments):
    is_detection = arguments.task == "detection"
    if is_detection and (arguments.conversion or arguments.training or arguments.plot):
        raise HGNetV2Error("--conversion, --training and --plot are for classifiers; leave --task detection out.")
    if arguments.photos and not is_detection:
        raise HGNetV2Error("--photos is for --task detection.")
    variants, batch_size, image_size = (["dfine-n"], 1, 640) if is_detection else (["b0"], 8, 224)
    arguments.variant = _known(arguments.variant or variants, is_detection)
    arguments.batch_size = arguments.batch_size or [batch_size]
    arguments.image_size = arguments.image_size or image_size
    if arguments.conversion:
        _run_conversion(arguments)
    elif arguments.training:
        _run_training(arguments)
    elif is_detection:
        _run_detection(arguments)
    else:
        _run_inference(arguments)


def _known(names, is_detection):
    if not is_detection:
        try:
            return [canonical_name(name) for name in names]
        except ValueError as error:
            raise HGNetV2Error(str(error)) from error
    from ..benchmark.detection import FAMILIES
    from ..training.detection.architectures import NAMES

    names, known = [name.lower() for name in names], [name for name in NAMES if name.split("-")[0] in FAMILIES]
    if unknown := [name for name in names if name not in known]:
        raise HGNetV2Error(f"There is no detector {unknown[0]} in Transformers: {', '.join(known)}.")
    return names


def _run_detection(arguments):
    from ..benchmark.detection import benchmark_detectors, benchmark_files, files_table
    from ..benchmark.inference import table
    from ..training.detection.architectures import build_detector

    result = benchmark_detectors(
        build_detector,
        arguments.variant,
        arguments.batch_size,
        arguments.backends,
        arguments.image_size,
        arguments.rounds,
        arguments.threads,
    )
    print(table(result), flush=True)
    if arguments.photos:
        result["files"] = {
            name: benchmark_files(
                build_detector, name, arguments.photos, arguments.backends, threads=arguments.threads
            )
            for name in arguments.variant
        }
        print(files_table(result["files"]))
    _write_json(result, arguments.json)


def _run_conversion(arguments):
    from ..benchmark.inference import benchmark_conversion

    print(benchmark_conversion(arguments.variant))


def _run_training(arguments):
    from ..benchmark.training import benchmark_training, table

    result = benchmark_training(arguments.variant, arguments.batch_size, arguments.image_size, arguments.rounds)
    print(table(result))
    _write_json(result, arguments.json)


def _run_inference(arguments):
    from ..benchmark.inference import benchmark, check_plot, plot, table

    if arguments.plot:
        check_plot(arguments.plot)
    result = benchmark(
        variants=arguments.variant,
        batch_sizes=arguments.batch_size,
        backends=arguments.backends,
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
