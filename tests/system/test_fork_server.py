"""The process that forks serves nobody who has ended, and loses no threads (tests/system/test_forks.py has more)."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time

from refine.system import fork_server


def test_a_server_whose_parent_has_ended_imports_no_further_module(tmp_path, checkout):
    (tmp_path / "leaves_a_trace.py").write_text("open('trace', 'w').close()")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    command = [sys.executable, "-m", "refine.system.fork_server", "leaves_a_trace"]
    environment = {"PYTHONPATH": f"{checkout}:{tmp_path}"}
    assert subprocess.run(command, stdin=theirs, env=environment, cwd=tmp_path, timeout=60).returncode == 0
    assert not (tmp_path / "trace").exists()


def test_threads_that_a_fork_would_lose_are_found():
    before = len(fork_server._foreign_threads())
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    time.sleep(0.1)
    assert len(fork_server._foreign_threads()) == before + 1
    end.set()
    thread.join()
