"""Type checkers know the public names: mypy reads typing_example.py and finds the types that its comments say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import hgnetv2_hf


EXAMPLE = Path(__file__).parent / "typing_example.py"
# Without the libraries' own types mypy takes seconds and not half a minute; the package's are the same. What it finds inside
# the package depends on what is installed beside it, and is not asked here.
CONFIGURATION = """
[mypy]
warn_unused_ignores = True
[mypy-hgnetv2_hf.*]
follow_imports = silent
[mypy-torch.*,transformers.*,numpy.*,PIL.*,safetensors.*,huggingface_hub.*]
follow_imports = skip
"""


def test_mypy_finds_the_types_of_the_public_names(tmp_path):
    pytest.importorskip("mypy", reason="mypy comes with the extra [test]")
    assert (Path(hgnetv2_hf.__file__).parent / "py.typed").is_file()
    (tmp_path / "mypy.ini").write_text(CONFIGURATION)
    command = [sys.executable, "-m", "mypy", "--config-file", tmp_path / "mypy.ini", "--cache-dir", tmp_path / "cache"]
    run = subprocess.run([*command, EXAMPLE], capture_output=True, text=True, timeout=300, cwd=EXAMPLE.parents[1])
    assert run.returncode == 0, run.stdout + run.stderr
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    expected = {
        number: line.rpartition("  # ")[2] for number, line in enumerate(lines, 1) if line.startswith("reveal_type(")
    }
    revealed = re.findall(r":(\d+): note: Revealed type is ['\"](.*)['\"]$", run.stdout, flags=re.MULTILINE)
    found = {int(number): re.sub(r"[\w.]+\.(\w+)", r"\1", type_) for number, type_ in revealed}
    assert found == expected and len(found) > 15
