"""A lock has one holder, and is free at once when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from refine.errors import SettingError
from refine.system.locks import Locked, hold, holder, stage_lock, try_hold
from tests.conftest import wait_for

HOLDER = """
import sys, time
from pathlib import Path
from refine.system.locks import hold
with hold(Path(sys.argv[1]), "the first"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_has_one_holder_whose_name_the_others_see(tmp_path):
    path = tmp_path / "deep" / "lock"
    first = try_hold(path, "the first")
    assert first is not None and try_hold(path, "the second") is None and holder(path) == "the first"
    with pytest.raises(Locked) as refused, hold(path, "the second", patience=0.2):
        pass
    assert refused.value.holder == "the first"
    first.release()
    with hold(path, "the second", patience=0.2):
        assert holder(path) == "the second"


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path, checkout: Path):
    path = tmp_path / "lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    assert try_hold(path, "the second") is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    with hold(path, "the second", patience=3.0):
        pass


def test_two_runs_that_need_one_stage_take_turns(tmp_path):
    said: list[str] = []
    order: list[str] = []

    def other() -> None:
        with stage_lock(tmp_path / "runs" / "start-1", "start", said.append):
            order.append("second")

    with stage_lock(tmp_path / "runs" / "start-1", "start", said.append):
        thread = threading.Thread(target=other)
        thread.start()
        assert wait_for(lambda: said)
        with stage_lock(tmp_path / "runs" / "start-2", "start", said.append):
            order.append("another stage")
        order.append("first")
    thread.join(timeout=10)
    assert order == ["another stage", "first", "second"] and said == [
        "start: another run is doing this stage; waiting for its result"
    ]


def test_a_file_system_without_locks_is_refused_and_nothing_is_left_there(tmp_path, monkeypatch):
    def without_locks(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", without_locks)
    for _ in range(2):
        with pytest.raises(SettingError, match=r"deep/lock: this file system has no locks"):
            try_hold(tmp_path / "deep" / "lock", "the first")
    monkeypatch.undo()
    lock = try_hold(tmp_path / "deep" / "lock", "the first")
    assert lock is not None
    lock.release()
