"""``hgnetv2-hf run SCRIPT``: any program that uses Transformers, with this package registered."""

import runpy
import sys
from pathlib import Path

from ..errors import HGNetV2Error


def run_script(script, arguments=()):
    """
    Runs a Python file as the interpreter would: as `__main__`, its folder first on the path, its arguments in `sys.argv`.

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
