"""Imports only go down the floors, and the mathematics runs without the trackers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

FLOORS = [
    {"settings", "ops", "errors", "paths", "identity"},
    {"models"},
    {"objective", "data"},
    {"evaluation"},
    {"training"},
    {"tracking", "services"},
    {"cli", "flows"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return found


def _rooms(checkout: Path) -> list[tuple[str, Path]]:
    rooms = [
        (path.relative_to(checkout / "refine").parts[0].removesuffix(".py"), path)
        for path in checkout.glob("refine/**/*.py")
    ]
    return rooms + [("flows", path) for path in checkout.glob("flows/**/*.py")]


def test_imports_only_go_down(checkout):
    upward = []
    for room, path in _rooms(checkout):
        for name in _imports(path):
            parts = name.split(".")
            other = parts[1] if parts[0] == "refine" and len(parts) > 1 else parts[0] if parts[0] == "flows" else None
            if other in FLOOR and room in FLOOR and FLOOR[other] > FLOOR[room]:
                upward.append(f"{path.relative_to(checkout)} imports {name}")
    assert not upward


def test_every_room_has_a_floor(checkout):
    assert {room for room, _ in _rooms(checkout)} - set(FLOOR) == {"__init__"}


@pytest.mark.parametrize("room", ["settings", "ops", "models", "objective"])
def test_the_mathematics_needs_no_tracker(room, checkout):
    trackers = {"mlflow", "prefect", "dvc"}
    found = {
        path: trackers & {name.split(".")[0] for name in _imports(path)}
        for path in checkout.glob(f"refine/{room}/*.py")
    }
    assert not {path: names for path, names in found.items() if names}
