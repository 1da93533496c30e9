"""The folder beside the output in which a training run lives until it is done: what was asked for, checkpoints, logs."""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

from ..conversion.errors import ConversionError


SETTINGS = "settings.json"


def enter_work_folder(folder: Path, settings: dict, overwrite: bool) -> bool:
    """
    Makes the folder, or takes up what an interrupted run with the same settings left there.

    Args:
        folder (`Path`): where the run lives.
        settings (`dict`): what decides the result; JSON.
        overwrite (`bool`): start anew where another run was interrupted.

    Returns:
        `bool`: whether an interrupted run is taken up.

    Raises:
        `ConversionError`: another run was interrupted here, or the folder cannot be written.
    """
    settings = json.loads(json.dumps(settings, default=str))
    try:
        if folder.is_dir() and any(folder.iterdir()):
            found = _read(folder / SETTINGS)
            if found == settings:
                return True
            if found is None:
                raise ConversionError(
                    f"{folder} holds files but no training run; choose another output, or remove it."
                )
            if not overwrite:
                different = sorted(key for key in {*found, *settings} if found.get(key) != settings.get(key))
                raise ConversionError(
                    f"{folder} holds an interrupted run with another choice of {', '.join(different)}. Repeat its command to finish "
                    "it, choose another output, or pass --overwrite to start anew."
                )
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2), encoding="utf-8")
    except OSError as error:
        raise ConversionError(f"Cannot write {folder}: {error.strerror or error}.") from error
    return False


def _read(path):
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return None


def last_checkpoint(folder: Path, also: tuple[str, ...] = ()):
    """The newest whole checkpoint, or ``None``; those that a killed run left unfinished are removed.

    `Trainer` writes `trainer_state.json` last, and callbacks the files named in ``also`` after that.
    """
    numbers = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*")}
    for path in sorted((path for path, match in numbers.items() if match), key=lambda path: -int(numbers[path][1])):
        if _read(path / "trainer_state.json") is not None and all((path / name).is_file() for name in also):
            return os.fspath(path)
        shutil.rmtree(path, ignore_errors=True)
    return None
