"""README's tree names every room and every file at the top, and nothing else. Links and commands: test_docs.py."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def readme(checkout: Path) -> str:
    return (checkout / "README.md").read_text(encoding="utf-8")


def _tree(readme: str) -> list[str]:
    """Paths in README's tree: the first word of each line, under the folder it is indented below."""
    block = re.search(r"```tree\n(.*?)```", readme, re.DOTALL)
    assert block, "README has no ```tree block"
    paths, folders = [], {0: ""}
    for line in block.group(1).splitlines():
        name = line.split()[0]
        depth = len(line) - len(line.lstrip())
        path = folders[depth] + name
        paths.append(path)
        if name.endswith("/"):
            folders[depth + 2] = path
    return paths


def _tracked(checkout: Path) -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=checkout, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [Path(line) for line in listed.stdout.splitlines()]


def test_everything_in_the_tree_exists(readme, checkout):
    missing = [path for path in _tree(readme) if not (checkout / path).exists() and path != "data/"]
    assert not missing


def test_every_room_is_in_the_tree(readme, checkout):
    rooms = {
        f"refine/{path.parts[1]}/" for path in _tracked(checkout) if path.parts[0] == "refine" and len(path.parts) > 2
    }
    assert rooms <= set(_tree(readme))


def test_every_top_level_entry_is_in_the_tree(readme, checkout):
    top = {path.parts[0] + ("/" if len(path.parts) > 1 else "") for path in _tracked(checkout)}
    named = {path for path in _tree(readme) if path.rstrip("/").count("/") == 0}
    assert {entry for entry in top if not entry.startswith(".")} - named == set()
