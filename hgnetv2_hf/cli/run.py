"""``hgnetv2-hf run SCRIPT``: any program that uses Transformers, with this package registered."""

import argparse
import runpy
import sys
from pathlib import Path

from ..errors import HGNetV2Error
from ._framework import add_command


def add(commands):
    parser = add_command(commands, "run", "Run any Transformers script with this package registered.")
    parser.add_argument("script", metavar="SCRIPT", help="a Python file")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS", help="its arguments")
    return parser


def run(arguments):
    run_script(arguments.script, arguments.arguments)


def run_script(script, arguments=()):
    """
    Runs a Python file as the interpreter would: as `__main__`, its folder first on the path, its arguments in
    `sys.argv`.

    Args:
        script (`str`): the file.
        arguments (`list[str]`): its arguments.

    Raises:
        `HGNetV2Error`: there is no such file. What the script raises, `SystemExit` included, passes through.
    """
    if not Path(script).is_file():
        raise HGNetV2Error(f"There is no script {script}.")
    sys.argv = [str(script), *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(str(script), run_name="__main__")
