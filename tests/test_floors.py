"""Imports only go down the floors, in no circle, and the mathematics runs without the trackers."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import file_of, modules_imported

FLOORS = [
    {"errors", "paths", "metric_names"},
    {"system", "settings", "ops", "identity"},
    {"models"},
    {"objective", "data"},
    {"evaluation"},
    {"training"},
    {"phases", "tracking"},
    {"reports", "services"},
    {"cli", "flows"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def _files(checkout: Path) -> list[Path]:
    return [*checkout.glob("refine/**/*.py"), *checkout.glob("flows/**/*.py")]


def _imports(checkout: Path) -> dict[str, set[str]]:
    """Of each file the files that it imports, as paths from the checkout. A package's face is imported by all who
    import from its rooms, so its own imports do not count as theirs."""
    found = {}
    for path in _files(checkout):
        modules = modules_imported(ast.parse(path.read_text(encoding="utf-8")))
        files = {file for name in modules if (file := file_of(name)) is not None}
        found[path.relative_to(checkout).as_posix()] = {
            file.relative_to(checkout).as_posix()
            for file in files
            if file != path and not _is_only_a_face(file, modules)
        }
    return found


def _is_only_a_face(file: Path, modules: set[str]) -> bool:
    """Whether `file` is a package that is named only on the way to a module inside of it."""
    if file.name != "__init__.py":
        return False
    inside = [name for name in modules if (found := file_of(name)) not in (None, file) and file.parent in found.parents]
    return bool(inside)


def _room(file: str) -> str:
    parts = file.split("/")
    return parts[0] if parts[0] == "flows" else parts[1].removesuffix(".py")


def _circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_imports_only_go_down(checkout):
    upward = [
        f"{file} imports {other}"
        for file, others in _imports(checkout).items()
        for other in others
        if _room(file) in FLOOR and _room(other) in FLOOR and FLOOR[_room(other)] > FLOOR[_room(file)]
    ]
    assert not upward


def test_every_room_has_a_floor(checkout):
    assert {_room(file) for file in _imports(checkout)} - set(FLOOR) == {"__init__"}


def test_no_files_import_each_other_in_a_circle(checkout):
    assert _circle(_imports(checkout)) == []


@pytest.mark.parametrize("depth", [2, 3])
def test_no_folders_import_each_other_in_a_circle(checkout, depth):
    """Of rooms (depth 2), and of the folders and files beside each other inside of a room (depth 3)."""
    graph: dict[str, set[str]] = {}
    for file, others in _imports(checkout).items():
        place = "/".join(file.split("/")[:depth])
        graph.setdefault(place, set()).update({"/".join(other.split("/")[:depth]) for other in others} - {place})
    assert _circle(graph) == []


@pytest.mark.parametrize("room", ["settings", "ops", "models", "objective"])
def test_the_mathematics_needs_no_tracker(room, checkout):
    trackers = {"mlflow", "prefect", "dvc"}
    found = {}
    for path in checkout.glob(f"refine/{room}/**/*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
        if names & trackers:
            found[path.name] = names & trackers
    assert not found
