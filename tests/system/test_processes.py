"""A training process never outlives the process that started it, and its failure is never silent."""

from __future__ import annotations

import contextvars
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from refine.system.processes import ProcessFailed, run_in_own_process
from tests.conftest import wait_for

# Writes its process id and its child's, then sleeps far longer than any test.
FAMILY = """
import os, subprocess, sys, time
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(sys.argv[1] + ".tmp", "w") as file:
    file.write(f"{os.getpid()} {grandchild.pid}")
os.replace(sys.argv[1] + ".tmp", sys.argv[1])
time.sleep(600)
"""


def alive(pid: int) -> bool:
    """Whether `pid` runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it may end while its line is read
        return False


def start_parent(tmp_path: Path) -> tuple[subprocess.Popen, list[int]]:
    """A parent that runs FAMILY with `run_in_own_process` in a thread, as a flow's task does; and the family's ids."""
    ids = tmp_path / "ids"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(f"""
            import sys, threading
            from refine.system.processes import run_in_own_process
            run = lambda: run_in_own_process([sys.executable, "-c", {FAMILY!r}, {str(ids)!r}])
            thread = threading.Thread(target=run); thread.start(); thread.join()
            """),
        ]
    )
    assert wait_for(ids.exists)
    return parent, [int(word) for word in ids.read_text().split()]


def guard_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_each_line_is_told_in_the_context_of_the_caller():
    run = contextvars.ContextVar("run", default="none")
    run.set("mid refine")
    told: list[tuple[str, str]] = []
    run_in_own_process([sys.executable, "-c", "print('step 1')"], echo=lambda line: told.append((run.get(), line)))
    assert told == [("mid refine", "step 1")]


def test_output_is_relayed_and_its_last_lines_are_returned():
    lines: list[str] = []
    code = "import sys; print('one'); print('two', file=sys.stderr); print('10%\\r20%')"
    tail = run_in_own_process([sys.executable, "-c", code], echo=lines.append)
    assert lines == tail == ["one", "two", "20%"]


def test_a_failure_is_raised_with_the_last_lines_of_output():
    code = "for i in range(100): print('line', i)\nraise RuntimeError('the disk is on fire')"
    with pytest.raises(ProcessFailed, match="exit code 1") as failure:
        run_in_own_process([sys.executable, "-c", code])
    assert "the disk is on fire" in str(failure.value)
    assert "line 99" in str(failure.value) and "line 10\n" not in str(failure.value)
    assert not failure.value.user_error


def test_a_user_error_stays_one_line():
    code = "import sys; print('noise'); print('error: unknown setting'); sys.exit(1)"
    with pytest.raises(ProcessFailed) as failure:
        run_in_own_process([sys.executable, "-c", code], name="refine train mid")
    assert str(failure.value) == "refine train mid: unknown setting" and failure.value.user_error


def test_death_by_a_signal_is_named():
    with pytest.raises(ProcessFailed, match="SIGKILL") as failure:
        run_in_own_process([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert failure.value.returncode == -signal.SIGKILL


def test_a_command_that_does_not_exist_is_one_line():
    with pytest.raises(ProcessFailed, match="cannot start /no/such/program"):
        run_in_own_process(["/no/such/program"])


def test_the_whole_family_dies_with_a_killed_parent(tmp_path):
    parent, family = start_parent(tmp_path)
    assert all(alive(pid) for pid in family)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert wait_for(lambda: not any(alive(pid) for pid in family), 5), "the training process outlived its parent"


def test_the_command_dies_with_a_killed_guard_and_the_parent_cleans_up(tmp_path):
    parent, family = start_parent(tmp_path)
    os.kill(guard_of(family[0]), signal.SIGKILL)
    assert wait_for(lambda: not any(alive(pid) for pid in family), 5)
    assert wait_for(lambda: parent.poll() is not None, 5), "the parent waits for a process that is gone"


def test_killing_parent_and_guard_at_once_leaves_no_training_running(tmp_path):
    parent, family = start_parent(tmp_path)
    guard = guard_of(family[0])
    os.kill(guard, signal.SIGSTOP)  # a guard that cannot act
    parent.send_signal(signal.SIGKILL)
    os.kill(guard, signal.SIGKILL)
    parent.wait()
    assert wait_for(lambda: not alive(family[0]), 5)
    if alive(family[1]):  # nothing covers the child: the command does not call die_with_parent
        os.kill(family[1], signal.SIGKILL)


def test_processes_that_the_command_left_running_are_ended(tmp_path):
    ids = tmp_path / "ids"
    code = FAMILY.replace("time.sleep(600)\n", "sys.exit(0)\n")
    run_in_own_process([sys.executable, "-c", code, str(ids)])
    left = int(ids.read_text().split()[1])
    assert wait_for(lambda: not alive(left), 5)


def test_an_interrupt_ends_the_family_before_it_is_raised(tmp_path):
    ids = tmp_path / "ids"

    def interrupt() -> None:
        wait_for(ids.exists)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_in_own_process([sys.executable, "-c", FAMILY, str(ids)], grace=2)
    finally:
        signal.signal(signal.SIGINT, before)
    family = [int(word) for word in ids.read_text().split()]
    assert wait_for(lambda: not any(alive(pid) for pid in family), 5)


def test_a_command_that_named_its_parent_ends_with_it_even_without_a_guard(tmp_path):
    """`die_with_parent` alone covers the workers of a command whose guard is killed."""
    code = (
        "import os, sys, time; from refine.system.processes import die_with_parent; die_with_parent();"
        "open(sys.argv[1], 'w').close(); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    ready = tmp_path / "ready"
    orphan = subprocess.Popen(
        [sys.executable, "-c", code, str(ready)], env={**os.environ, "REFINE_DIES_WITH": str(holder.pid)}
    )
    assert wait_for(ready.exists)
    assert orphan.poll() is None
    holder.kill()
    holder.wait()
    assert orphan.wait(timeout=10) == -signal.SIGKILL
