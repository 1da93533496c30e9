"""The folder beside the output in which a training run lives until it is done: what was asked for, checkpoints,
logs."""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

from ..errors import TrainingError
from ..files.atomic import atomic_file


SETTINGS = "settings.json"
DATA_PICTURE = "data.png"
DATA = "the data"  # its key among the settings
# Beginnings of the names of options that decide what is shown or how fast it goes, and never the weights.
_WITHOUT_INFLUENCE = (
    "check",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "disable_tqdm",
    "draw_data",
    "hub_",
    "log_",
    "logging_",
    "project",
    "report_to",
    "resume_from_checkpoint",
    "run_name",
    "save_total_limit",
    "skip_memory_metrics",
    "trackio_",
)


def enter_work_folder(folder: Path, settings: dict, data: dict, overwrite: bool) -> bool:
    """
    Makes the folder, or takes up what an interrupted run with the same settings left there.

    Args:
        folder (`Path`): where the run lives.
        settings (`dict`): what was asked for; JSON. Options that do not reach the weights may differ between two runs.
        data (`dict`): the fingerprint of the images to learn from and to validate with.
        overwrite (`bool`): start anew where another run was interrupted.

    Returns:
        `bool`: whether an interrupted run is taken up.

    Raises:
        `TrainingError`: another run was interrupted here, its data have changed, or the folder cannot be written.
    """
    settings = _with_influence(json.loads(json.dumps({**settings, DATA: data}, default=str)))
    try:
        if folder.is_dir() and any(folder.iterdir()):
            found = _read(folder / SETTINGS)
            found = found if found is None else _with_influence(found)
            if found == settings:
                return True
            if found is None:
                raise TrainingError(f"{folder} holds files but no training run; choose another output, or remove it.")
            if not overwrite:
                raise TrainingError(_difference(folder, found, settings))
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / SETTINGS) as partial:
            partial.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"Cannot write {folder}: {error.strerror or error}.") from error
    return False


def where_drawn(folder: Path, output_dir: str) -> str:
    """The line that names the picture of the data, which moves with the rest."""
    return f"drawn: {folder / DATA_PICTURE}; {Path(output_dir) / DATA_PICTURE} once the training is done"


def _with_influence(settings):
    return {name: value for name, value in settings.items() if not name.startswith(_WITHOUT_INFLUENCE)}


def _difference(folder, found, settings):
    """Why an interrupted run cannot be continued with these settings."""
    different = sorted(key for key in {*found, *settings} if found.get(key) != settings.get(key))
    if different == [DATA]:
        before, now = (each.get(DATA) or {} for each in (found, settings))
        return (
            f"The data are not those that the run interrupted in {folder} started with (then {before.get('images')}, "
            f"now {now.get('images')} images), so images that it learnt from could be validated on. Restore the data, "
            "choose another output, or pass --overwrite to start anew."
        )
    return (
        f"{folder} holds an interrupted run of other settings ({', '.join(different)}), or of another version of this "
        "package. Repeat its command with its version to finish it, choose another output, or pass --overwrite to "
        "start anew."
    )


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
