"""Whatever writes somewhere is the only one that does; a second run stops, and a killed one is in nobody's way."""

import csv
import os
import signal
import subprocess
import sys
from collections import Counter

import pytest

from hgnetv2_hf.cli import main
from hgnetv2_hf.data import digits
from hgnetv2_hf.errors import OutputError
from hgnetv2_hf.files.atomic import atomic_file, claim, lock


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for index, image in enumerate(digits.load_held_out()[0][:40]):
        image.save(folder / f"{index:03}.png")
    return folder


COMMANDS = {
    "convert": "convert digits OUT",
    "classify": "classify IMAGES --model MODEL --output OUT.csv",
    "train": "train digits --model MODEL --output OUT --use_cpu",
    "export": "export MODEL OUT --format onnx",
    "detect": "detect IMAGES --model MODEL --output OUT",
    "export-weights": "export-weights MODEL OUT.pdparams --layout paddleclas",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_run_to_the_same_output_stops(name, digits_folder, images, tmp_path, capsys):
    needs = {"export": "onnxruntime", "detect": "torchvision", "train": "sklearn"}
    if name in needs:
        pytest.importorskip(needs[name], reason="comes with an extra")
    paths = {"OUT": tmp_path / "out", "MODEL": digits_folder, "IMAGES": images}
    command = [str(paths.get(part, part)) for part in COMMANDS[name].split()]
    command = [part.replace("OUT", str(paths["OUT"])) for part in command]
    output = next(part for part in command if part.startswith(str(paths["OUT"])))
    with lock(output + (".journal" if name == "classify" else "")):
        assert main(command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"is being written by another process ({os.getpid()})" in error, error
    assert not list(tmp_path.iterdir())


def run_twice(command):
    """The same command in two processes at once: exit statuses, and what the one that failed said last."""
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in both]
    failed = [text.splitlines()[-1] for process, text in zip(both, errors) if process.returncode]
    return sorted(process.returncode for process in both), failed


@pytest.mark.slow
def test_two_classify_runs_at_once_leave_every_row_once(digits_folder, images, tmp_path):
    command = [sys.executable, "-m", "hgnetv2_hf", "classify", str(images), "--model", str(digits_folder)]
    codes, errors = run_twice([*command, "--output", str(tmp_path / "out.csv"), "--workers", "1"])
    assert codes == [0, 1] and ("another process" in errors[0] or "exists already" in errors[0]), errors
    with open(tmp_path / "out.csv", newline="") as file:
        rows = Counter(row["image"] for row in csv.DictReader(file))
    assert len(rows) == 40 and set(rows.values()) == {1}
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


@pytest.mark.slow
def test_two_trainings_at_once_leave_the_folder_of_one(digits_folder, images, tmp_path):
    for index, path in enumerate(sorted(images.iterdir())):
        target = tmp_path / "data" / "ab"[index % 2] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    command = [sys.executable, "-m", "hgnetv2_hf", "train", str(tmp_path / "data"), "--model", str(digits_folder)]
    command += "--head new --num_train_epochs 1 --use_cpu --dataloader_num_workers 0".split()
    codes, errors = run_twice([*command, "--output", str(tmp_path / "out")])
    assert codes == [0, 1] and ("another process" in errors[0] or "exists already" in errors[0]), errors
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


def test_a_killed_process_and_its_children_lock_nobody_out(tmp_path):
    script = (
        "import os, sys, time\n"
        "from hgnetv2_hf.files.atomic import claim\n"
        "with claim(sys.argv[1]):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        print(os.getpid(), flush=True)\n"  # when it has let the lock go
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    try:
        with pytest.raises(OutputError, match="another process"), claim(tmp_path / "out"):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(child, 0)  # it lives, as a data loader's worker does for a while
        (leftover,) = tmp_path.iterdir()
        leftover.write_text("123456789012")  # a number longer than ours
        with claim(tmp_path / "out"):
            assert leftover.read_text() == str(os.getpid())
    finally:
        os.kill(child, signal.SIGKILL)
    assert not list(tmp_path.iterdir())


def test_a_target_that_appears_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    from hgnetv2_hf.files import atomic as folder

    def appears(path):
        (tmp_path / "out").mkdir()
        return locked(path)

    locked = folder._locked
    monkeypatch.setattr(folder, "_locked", appears)
    with pytest.raises(OutputError, match="exists already"), claim(tmp_path / "out"):
        pass


def test_files_are_written_by_one_at_a_time(tmp_path):
    target = tmp_path / "figures.json"
    with atomic_file(target) as partial:
        partial.write_text("whole")
        with pytest.raises(OutputError, match="another process"), atomic_file(target):
            pass
    assert (tmp_path / "figures.json").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "figures.json").symlink_to(tmp_path / "elsewhere" / "figures.json")
    for text in ("first", "second"):
        with atomic_file(tmp_path / "figures.json") as partial:
            partial.write_text(text)
        assert (tmp_path / "figures.json").is_symlink()
        assert (tmp_path / "elsewhere" / "figures.json").read_text() == text
