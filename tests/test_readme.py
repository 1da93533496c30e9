"""What the README says is what happens."""

import re
import subprocess
import sys
from pathlib import Path

from hgnetv2_hf.cli import main
from hgnetv2_hf.cli.listing import parameter_count
from hgnetv2_hf.hub.published import PUBLISHED


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_examples_run(tmp_path, golden_checkpoint, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert main(["quickstart", "--out", str(tmp_path / "hgnetv2-digits")]) == 0
    (shown,) = re.findall(r"```text\n(.*?)```", README, flags=re.DOTALL)
    assert shown in capsys.readouterr().out
    assert '"PPHGNetV2_B4_ssld_stage1"' in code
    code = code.replace("PPHGNetV2_B4_ssld_stage1", str(golden_checkpoint("paddleclas_b4")))
    code += "\nassert processor.size == {'shortest_edge': 32}\nassert model.config.num_labels == 10"
    code += "\nassert backbone.channels == [64, 96, 128]"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr


def test_the_front_page_is_short_and_every_link_leads_somewhere():
    assert len(README.splitlines()) <= 130
    for page in ROOT.rglob("README.md"):
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)", text):
            assert (page.parent / link[0]).exists(), f"{page}: {link[0]}"
        for program in re.findall(r"python ((?:tests|conversion_scripts)/\S+\.py)", text):
            assert (ROOT / program).is_file(), f"{page}: {program}"


def test_the_accuracy_table_is_that_of_the_published_checkpoints():
    for title, column in (("top-1 %", "top1"), ("top-5 %", "top5")):
        (row,) = re.findall(rf"^\| {re.escape(title)} \|(.*)\|$", README, flags=re.MULTILINE)
        expected = [getattr(PUBLISHED[f"PPHGNetV2_B{i}_ssld_stage2"], column) for i in range(7)]
        assert [float(value) for value in row.split("|")] == expected
    (row,) = re.findall(r"^\| parameters, M \|(.*)\|$", README, flags=re.MULTILINE)
    assert [float(value) for value in row.split("|")] == [round(parameter_count(f"b{i}") / 1e6, 2) for i in range(7)]
