"""Run a training command in its own process, which never outlives the process that started it.

Parent -> guard -> command. The guard leads a process group and reads a pipe that only the parent holds open. When the
parent dies, however suddenly, the guard reads end of file and kills the group. On Linux the kernel also kills the
command when the guard dies (PR_SET_PDEATHSIG), and the parent kills the group when the guard ends. So no single
SIGKILL leaves a process behind.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import psutil

from refine.errors import TrainingError
from refine.system.forks import Forked, ForkServer
from refine.system.together import CURRENT

GUARD = Path(__file__).with_name("guard.py")
PR_SET_PDEATHSIG = 1  # linux/prctl.h
PARENT_VARIABLE = "REFINE_DIES_WITH"  # process id of the parent; the guard sets it for the command
DVC_STAGE = "DVC_STAGE"  # DVC sets this variable, the name of the stage, for the stage's command
TAIL = 20  # last lines of output that an error shows


class ProcessFailed(TrainingError):
    """A training process failed.

    `returncode`: its exit code, or minus the number of the signal that ended it. `tail`: its last lines of output.
    `user_error`: whether it ended with a one-line error of the user, so that a retry would fail again.
    """

    def __init__(self, command: str, returncode: int, tail: Sequence[str]) -> None:
        self.returncode, self.tail = returncode, list(tail)
        line = next((line for line in reversed(self.tail) if line.startswith("error: ")), None)
        self.user_error = returncode == 1 and line is not None
        how = f"was ended by {_signal_name(-returncode)}" if returncode < 0 else f"failed with exit code {returncode}"
        if line is not None and self.user_error:
            message = f"{command}: {line.removeprefix('error: ')}"
        else:
            message = f"{command} {how}" + ("; its last output:\n" + "\n".join(self.tail) if self.tail else "")
        super().__init__(message)


def run_in_own_process(
    argv: Sequence[str],
    *,
    echo: Callable[[str], None] | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: str | None = None,
    grace: float = 10.0,
    name: str | None = None,
    forks: ForkServer | None = None,
) -> list[str]:
    """Run `argv` to its end in its own process group, which dies with this process.

    Each line of its output (stdout and stderr together) goes to `echo` at once. `environment`: variables that are added
    to this process's, or replace them. `forks`: starts the command, if it can. An exception
    in this thread (an interrupt, a cancelled task) ends the group with SIGTERM, and with SIGKILL after `grace` seconds;
    so does an interrupt of the block that `together` opened. Returns the last lines of output.

    Raises ProcessFailed: the command could not be started, or its exit code is not 0.
    """
    variables = environment_of_command(environment or {})
    guard = (forks and forks.start(argv, variables, cwd)) or _guarded(argv, variables, cwd)
    tail: deque[str] = deque(maxlen=TAIL)
    # `echo` sees the context of this thread: Prefect's log of a run hangs on it.
    relay = partial(contextvars.copy_context().run, _relay, guard, tail, echo)
    reader = threading.Thread(target=relay, daemon=True)
    reader.start()
    group = CURRENT.get()
    ended_with_others = group.command(partial(_end_group, guard.pid, grace)) if group else contextlib.nullcontext()
    try:
        with ended_with_others:
            code = guard.wait()
    except BaseException:
        _end_group(guard.pid, grace)
        guard.wait()
        raise
    finally:
        _signal_group(guard.pid, signal.SIGKILL)  # processes that the command left running
        if guard.stdin is not None:
            guard.stdin.close()
    reader.join(timeout=grace)
    if code != 0:
        # If signal N ended the command, the guard exits with 128 + N, as a shell does.
        raise ProcessFailed(name or " ".join(argv[:3]), 128 - code if code > 128 else code, tail)
    return list(tail)


def environment_of_command(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of a command: this process's, and `environment`, which go first."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", **environment}


def _guarded(argv: Sequence[str], variables: Mapping[str, str], cwd: str | None) -> subprocess.Popen[bytes]:
    """The guard of a command that is started anew."""
    # Only this process has the writing end of the pipe: the guard reads end of file when this process is gone.
    return subprocess.Popen(
        [sys.executable, "-I", str(GUARD), str(os.getpid()), *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd=cwd,
        env=variables,
    )


def die_with_parent(at_once: bool = True) -> None:
    """Called by a command that `run_in_own_process` may have started: end when the parent does, even without a guard.

    Does nothing if the environment names no parent. On Linux the kernel ends the command; on other systems, and for a
    child of the command (`at_once` false), a thread checks once a second.
    """
    named = os.environ.get(PARENT_VARIABLE)
    if named is None:
        return
    if at_once and sys.platform == "linux":
        _kernel_kills_with_parent()
    if not _alive(int(named)):
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=_watch, args=(int(named),), daemon=True).start()


def die_with_dvc() -> None:
    """Called by a command: if it is a stage of DVC (or started by one), end when DVC does.

    DVC starts a stage through a shell, which outlives a killed DVC. So every process between this one and DVC counts,
    and DVC itself. Ctrl-C reaches the command from the terminal, as before: DVC waits for its end.
    """
    if DVC_STAGE not in os.environ:
        return
    if sys.platform == "linux":
        _kernel_kills_with_parent()
    if _orphaned():
        os.kill(os.getpid(), signal.SIGKILL)
    processes = _up_to_dvc()
    threading.Thread(target=_watch_all, args=(processes,), daemon=True).start()


def _orphaned() -> bool:
    """Whether DVC died while this process was starting: a process of another session is the parent then."""
    with contextlib.suppress(OSError):
        return os.getsid(0) != os.getpid() and os.getsid(os.getppid()) != os.getsid(0)
    return False


def _up_to_dvc() -> list[psutil.Process]:
    """The processes above this one that have DVC's variables, and the one above them: DVC, which set these."""
    found = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process().parents():
            found.append(process)
            if process.environ().get(DVC_STAGE) != os.environ[DVC_STAGE]:
                break
    return found


def _watch_all(processes: Sequence[psutil.Process]) -> None:
    while all(_runs(process) for process in processes):
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)


def _runs(process: psutil.Process) -> bool:
    """Whether it is still the same process. One that ended and that nobody has waited for yet does not run."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # it exists, but belongs to another user
        return True


def _watch(parent: int) -> None:
    while _alive(parent):
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists, but belongs to another user
        return True
    return True


def _kernel_kills_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _relay(guard: subprocess.Popen[bytes] | Forked, tail: deque[str], echo: Callable[[str], None] | None) -> None:
    assert guard.stdout is not None
    for raw in guard.stdout:
        line = raw.decode("utf-8", errors="replace").rstrip("\r\n").rpartition("\r")[2]
        if line:
            tail.append(line)
            if echo is not None:
                echo(line)


def _end_group(group: int, grace: float) -> None:
    _signal_group(group, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while _alive(group) and time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(group, os.WNOHANG)
        time.sleep(0.05)
    _signal_group(group, signal.SIGKILL)


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
