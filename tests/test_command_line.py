"""The commands as a newcomer runs them."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hgnetv2_hf import digits
from hgnetv2_hf.cli import main
from hgnetv2_hf.published import PUBLISHED
from hgnetv2_hf.variants import VARIANTS


SCRIPTS = Path(__file__).parent.parent / "conversion_scripts"


def test_quickstart_converts_classifies_and_prints_the_accuracy_and_repeats(tmp_path, capsys):
    for _ in range(2):
        assert main(["quickstart", "--out", str(tmp_path / "digits")]) == 0
        printed = capsys.readouterr().out
        rows = re.findall(r"digit_(\d)\.png\s+(\d)\s+0\.\d{4}", printed)
        assert len(rows) == 10 and all(shown == label for shown, label in rows)
        right, total = map(int, re.search(r"(\d+) of (\d+) scans", printed).groups())
        assert total == 599 and right / total >= 0.98


def test_the_shipped_scans_are_the_held_out_third_of_scikit_learns_digits():
    pytest.importorskip("sklearn", reason="scikit-learn comes with the extra [test]")
    _, (scans, labels) = digits.load_split()
    images, shipped_labels = digits.load_held_out()
    assert shipped_labels == labels.tolist()
    assert all(np.array_equal(image, scan) for image, scan in zip(images, scans))
    assert len(images) == 599


def test_the_shipped_checkpoint_is_small():
    assert (digits.ASSETS / PUBLISHED["digits"].file_name).stat().st_size <= 1_000_000


@pytest.mark.slow
def test_the_documented_command_trains_the_shipped_checkpoint_again(tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn comes with the extra [test]")
    out = tmp_path / "digits.pdparams"
    run = subprocess.run(
        [sys.executable, "-m", "hgnetv2_hf.digits", str(out)], capture_output=True, text=True, check=True, timeout=900
    )
    assert float(re.search(r"([\d.]+)% of the held-out", run.stdout)[1]) >= 98
    assert main(["convert", str(out), str(tmp_path / "folder"), "--resize-short", "32", "--crop-size", "32"]) == 0


def test_list_shows_variants_and_published_checkpoints(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in [*VARIANTS, *PUBLISHED]:
        assert re.search(rf"^{name}\s", printed, flags=re.MULTILINE)
    assert "83.57" in printed and "19.80 M" in printed


def test_benchmark_prints_machine_versions_and_ratios(capsys):
    assert main(["benchmark", "--variant", "b0", "--batch-size", "1", "--image-size", "64", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "torch" in printed and "threads" in printed
    assert re.search(r"^b0\s+1(\s+\d+\.\d+){3}$", printed, flags=re.MULTILINE)


@pytest.mark.parametrize("arguments", [[], ["no_such_command"], ["convert"], ["convert", "a", "b", "--dropout", "2"]])
def test_wrong_usage_is_status_two(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_paddleclas_script_is_the_convert_command(tmp_path):
    checkpoint = digits.ASSETS / PUBLISHED["digits"].file_name
    script = SCRIPTS / "convert_paddleclas.py"
    run = subprocess.run(
        [sys.executable, str(script), str(checkpoint), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()
