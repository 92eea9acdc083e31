"""A stage of DVC ends when DVC is killed, and Ctrl-C still reaches it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import heed_interrupts, wait_for
from tests.system.test_processes import alive

# A command such as `refine` and `python -m flows.pipeline`: it writes its process id and works very long.
STAGE = """
import os, sys, time
from refine.system.processes import die_with_dvc
die_with_dvc()
with open("stage.tmp", "w") as file:
    file.write(str(os.getpid()))
os.replace("stage.tmp", "stage.pid")
try:
    time.sleep(600)
except KeyboardInterrupt:
    open("interrupted", "w").close()
    sys.exit(1)
"""


@pytest.fixture(params=["", "true && "], ids=["replaces the shell", "below the shell"])
def repro(request, tmp_path, monkeypatch, checkout):
    """`dvc repro` in a small project, and the process id of its stage."""
    (tmp_path / "stage.py").write_text(STAGE)
    command = f"{request.param}{sys.executable} stage.py" + (" && true" if request.param else "")
    (tmp_path / "dvc.yaml").write_text(f"stages:\n  work:\n    cmd: {command}\n")
    environment = {**os.environ, "PYTHONPATH": str(checkout), "SHELL": "/bin/sh", "DVC_NO_ANALYTICS": "1"}
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "-q"], cwd=tmp_path, check=True, env=environment)
    started = subprocess.Popen(
        [*dvc, "repro", "-q"], cwd=tmp_path, env=environment, start_new_session=True, preexec_fn=heed_interrupts
    )
    try:
        assert wait_for((tmp_path / "stage.pid").exists, 60)
        yield started, int((tmp_path / "stage.pid").read_text()), tmp_path
    finally:
        for number in (started.pid, int((tmp_path / "stage.pid").read_text())):
            if alive(number):
                os.kill(number, signal.SIGKILL)
        started.wait()


def test_a_stage_ends_when_dvc_is_killed(repro):
    dvc, stage, _ = repro
    assert alive(stage)
    dvc.kill()
    dvc.wait()
    assert wait_for(lambda: not alive(stage), 20), "the stage outlived `dvc repro`"


def test_ctrl_c_ends_the_stage_as_before(repro):
    dvc, stage, folder = repro
    os.killpg(dvc.pid, signal.SIGINT)  # what a terminal sends
    assert wait_for((folder / "interrupted").exists, 30)
    assert wait_for(lambda: not alive(stage), 20)
    assert dvc.wait(timeout=20) != 0


def test_outside_dvc_a_command_outlives_its_parent(tmp_path, checkout):
    """`nohup refine train ... &` goes on after its terminal is closed."""
    (tmp_path / "stage.py").write_text(STAGE)
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} stage.py & sleep 0.1"],
        cwd=tmp_path,
        check=True,
        env={**environment, "PYTHONPATH": str(checkout)},
    )
    pid_file: Path = tmp_path / "stage.pid"
    assert wait_for(pid_file.exists)
    pid = int(pid_file.read_text())
    try:
        assert not wait_for(lambda: not alive(pid), 2)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_stage_whose_dvc_died_while_it_started_ends(tmp_path, checkout):
    (tmp_path / "stage.py").write_text("import time\ntime.sleep(1)\n" + STAGE)
    subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} stage.py & echo $! > started"],
        cwd=tmp_path,
        check=True,
        env={**os.environ, "PYTHONPATH": str(checkout), "DVC_STAGE": "work"},
        start_new_session=True,
    )
    pid = int((tmp_path / "started").read_text())
    assert alive(pid)
    assert wait_for(lambda: not alive(pid), 10) and not (tmp_path / "stage.pid").exists()
