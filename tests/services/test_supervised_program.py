"""A supervised program returns its command's exit code, and its command never outlives the supervisor.

The same with real servers is in tests/services/test_up.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil

from tests.conftest import wait_for

SUPERVISED = [sys.executable, "-m", "refine.services.supervised_program", sys.executable, "-c"]
SUPERVISOR = """
import subprocess, sys
subprocess.run(sys.argv[1:])
"""


def test_it_returns_the_commands_exit_code_and_repeats_its_output():
    done = subprocess.run([*SUPERVISED, "print('ready'); raise SystemExit(3)"], capture_output=True, text=True)
    assert done.returncode == 3 and done.stdout == "ready\n"


def test_sigterm_ends_the_command(tmp_path):
    process = subprocess.Popen([*SUPERVISED, _waits(tmp_path)])
    assert wait_for((tmp_path / "ready").exists)
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    assert process.wait(timeout=20) == 0
    assert family and not psutil.wait_procs(family, timeout=10)[1]


def test_the_command_ends_with_a_killed_supervisor(tmp_path):
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, *SUPERVISED, _waits(tmp_path)])
    assert wait_for((tmp_path / "ready").exists)
    family = psutil.Process(supervisor.pid).children(recursive=True)
    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait()
    assert len(family) > 1 and not psutil.wait_procs(family, timeout=10)[1]


def _waits(folder) -> str:
    return f"import time; open({str(folder / 'ready')!r}, 'w').close(); time.sleep(600)"
