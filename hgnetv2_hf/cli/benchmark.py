"""``hgnetv2-hf benchmark``: this package against Transformers' own model, in one run."""

import argparse
import json

from ..benchmark.backends import BACKENDS, DEFAULT_BACKENDS
from ._framework import add_command, positive_integer, variant


def add(commands):
    parser = add_command(
        commands, "benchmark", "Time this package against Transformers' own model, in turn, in one run."
    )
    parser.add_argument("--variant", type=variant, nargs="+", default=["b0"], metavar="NAME")
    parser.add_argument("--batch-size", type=positive_integer, nargs="+", default=[8], metavar="N")
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
    parser.add_argument("--image-size", type=positive_integer, default=224, metavar="PIXELS")
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
    if arguments.conversion:
        _run_conversion(arguments)
    elif arguments.training:
        _run_training(arguments)
    else:
        _run_inference(arguments)


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
