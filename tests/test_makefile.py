"""`make clean` keeps the registry unless asked; Ctrl-C of `make run` ends with what to do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import wait_for

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
SLEEPS = "#!/bin/sh\necho started > started\nexec sleep 60\n"


@pytest.fixture
def folder(tmp_path, checkout) -> Path:
    """A folder with the Makefile, an installation that is up to date, and what the pipeline writes."""
    shutil.copy(checkout / "Makefile", tmp_path)
    for name in ("pyproject.toml", ".ci/pins.txt", ".ci/texts.txt", ".venv/bin/python", "mlflow.db"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("prepared", "runs", "results", "mlartifacts", "data", "services"):
        (tmp_path / name).mkdir()
    (tmp_path / ".venv/bin/.installed").touch()
    return tmp_path


def clean(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "clean", *arguments], cwd=folder, capture_output=True, text=True)


def left(folder: Path) -> set[str]:
    names = {"prepared", "runs", "results", "mlartifacts", "data", "mlflow.db"}
    return {one.name for one in folder.iterdir()} & names


def test_clean_keeps_the_registry_unless_asked(folder):
    done = clean(folder)
    assert done.returncode == 0 and "REGISTRY=1 removes them" in done.stdout
    assert left(folder) == {"data", "mlartifacts", "mlflow.db"}
    assert clean(folder, "REGISTRY=1").returncode == 0 and left(folder) == {"data"}


def test_the_registry_of_running_services_is_not_removed(folder):
    (folder / "services" / "state.json").touch()
    done = clean(folder, "REGISTRY=1")
    assert done.returncode != 0 and "stop them first (refine down)" in done.stdout
    assert "mlflow.db" in left(folder) and "runs" in left(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_of_make_run_ends_with_what_to_do(folder):
    program = folder / ".venv/bin/refine"
    program.write_text(SLEEPS)
    program.chmod(0o755)
    # Where the tests run in the background, the shell has told them to ignore Ctrl-C.
    process = subprocess.Popen(
        ["make", "run"], cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert wait_for((folder / "started").exists)
    os.killpg(process.pid, signal.SIGINT)
    assert "stopped; start again to go on from here: make run" in process.communicate(timeout=20)[1]
    assert process.returncode != 0
