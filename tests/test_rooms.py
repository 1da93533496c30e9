"""Imports point downwards: which room of the package uses which, read from its source with ``ast``."""

import ast
from pathlib import Path

import pytest

import hgnetv2_hf


PACKAGE = Path(hgnetv2_hf.__file__).parent
EVERYBODY = {"errors", "wording"}  # what every room but model may use
# A room is a folder or a module at the top. "__init__" is the package itself: its public names, imported lazily.
MAY_USE = {
    "__main__": {"cli"},
    "cli": {
        "__init__", "benchmark", "demo", "training", "inference", "evaluation", "data", "backbone", "conversion",
        "registration", "structure", "hub", "files", "model",
    },
    "__init__": {"training", "inference", "backbone", "conversion", "registration", "model"},
    "benchmark": {"inference", "evaluation", "conversion", "hub", "files", "model"},
    "demo": {"inference", "evaluation", "conversion", "structure", "hub", "files", "model"},
    "training": {"evaluation", "data", "backbone", "structure", "conversion", "hub", "files", "model"},
    "inference": {"evaluation", "data", "backbone", "structure", "files", "model"},
    "evaluation": {"files", "model"},
    "data": {"files", "model"},
    "backbone": {"conversion", "hub", "structure", "model"},
    "conversion": {"hub", "files", "model"},
    "registration": {"model"},
    "structure": {"model"},
    "hub": set(),
    "files": set(),
    "model": set(),
    "errors": set(),
    "wording": set(),
}  # fmt: skip


def room_of(path):
    """``training/run.py`` -> training; ``backbone.py`` -> backbone."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


ROOMS = {room_of(path) for path in PACKAGE.rglob("*.py")}


def imported_rooms(path):
    """(room, line) of every import of this package in a file, also inside functions and for type checkers."""
    package = ("hgnetv2_hf", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) + 1 - node.level]) if node.level else []
            base += node.module.split(".") if node.module else []
            # `from .. import cli` and `from hgnetv2_hf import cli` name a room; `from .. import __version__` does not.
            modules = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for module in modules:
            if module[0] == "hgnetv2_hf":
                yield (module[1] if len(module) > 1 and module[1] in ROOMS else "__init__"), node.lineno


USES = {
    (room_of(path), used): f"{path.relative_to(PACKAGE)}:{line}"
    for path in sorted(PACKAGE.rglob("*.py"))
    for used, line in imported_rooms(path)
    if used != room_of(path)
}


def test_every_room_has_a_row():
    assert ROOMS - MAY_USE.keys() == set()
    assert EVERYBODY <= MAY_USE.keys() and set().union(*MAY_USE.values()) <= MAY_USE.keys()


@pytest.mark.parametrize("room", MAY_USE)
def test_a_room_uses_only_those_below_it(room):
    allowed = MAY_USE[room] | (set() if room in {"model", *EVERYBODY} else EVERYBODY)
    wrong = {f"{used} ({place})" for (user, used), place in USES.items() if user == room and used not in allowed}
    assert not wrong, f"{room} may use {', '.join(sorted(allowed)) or 'nothing'}, and uses {', '.join(sorted(wrong))}"


def test_no_two_rooms_use_each_other():
    """Nor any three in a circle: each room has a level above all that it uses."""
    used_by = {room: {used for user, used in USES if user == room} for room in ROOMS}
    while leaves := {room for room, used in used_by.items() if not used}:
        used_by = {room: used - leaves for room, used in used_by.items() if room not in leaves}
    assert not used_by, f"these use each other: {used_by}"


def test_an_import_is_found_wherever_it_stands(tmp_path, monkeypatch):
    """So that the tests above mean something."""
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "example.py"
    file.write_text(
        "import hgnetv2_hf.hub.upload\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from ..training import train\n"
        "def function():\n    from hgnetv2_hf import inference\n    from .. import cli, __version__\n"
        "from . import compat\nfrom .variants import VARIANTS\nimport torch\n"
    )
    found = {room for room, _ in imported_rooms(file)}
    assert found == {"hub", "training", "inference", "cli", "__init__", "model"}
