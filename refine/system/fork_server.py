"""A process that has imported modules once and forks for each command:
`python -m refine.system.fork_server MODULE ...`.

Importing torch and transformers takes seconds, a fork of a process that has done so takes milliseconds. The parent
(`refine.system.forks`) sends each command over a socket, which is this program's standard input. The fork becomes the
guard of the command (see `refine.system.processes`) and forks once more: that process is the command.

A fork copies one thread alone. So this program starts none, and refuses to fork when a library has started one that
does not come through a fork. It ends when its parent does, because the socket ends then.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

from refine.system import guard

LARGEST = 1 << 16  # bytes of a request
FORKABLE = ("jemalloc_bg_thd",)  # threads of libraries that take care of forks themselves: pyarrow's jemalloc


def main(modules: list[str]) -> None:
    """Import `modules`, then serve. A fork that is a command returns here, runs it and ends as a program does."""
    with socket.socket(fileno=os.dup(0)) as connection:
        for module in modules:
            if _is_over(connection):
                return
            importlib.import_module(module)
        if _foreign_threads():
            return
        gc.collect()
        gc.freeze()  # the forks share these objects' memory as long as nobody writes to it
        command = _serve(connection)
    if command is not None:
        sys.argv = [command["module"], *command["arguments"]]
        runpy.run_module(command["module"], run_name="__main__", alter_sys=True)


def _is_over(connection: socket.socket) -> bool:
    """Whether the parent has ended: it closed the connection."""
    readable, _, _ = select.select([connection], [], [], 0)
    return bool(readable) and not connection.recv(1, socket.MSG_PEEK)


def _foreign_threads() -> list[str]:
    """Threads of this process that a fork would not copy, and that may hold a lock when it happens."""
    own = Path("/proc/self/task")
    names = {int(one.name): (one / "comm").read_text().strip() for one in own.iterdir()}
    return [name for number, name in names.items() if number != os.getpid() and name not in FORKABLE]


def _serve(connection: socket.socket) -> dict[str, Any] | None:
    """Fork for each request until the parent ends. Returns None then; in the fork that is a command, its request."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel takes ended guards away
    while True:
        message, files, _, _ = socket.recv_fds(connection, LARGEST, 3)
        if not message:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python's, of a fork beside jemalloc's thread
            forked = os.fork()
        if forked == 0:
            connection.close()
            request: dict[str, Any] = json.loads(message)
            _become_guard(request["parent"], *files)
            _set(*request["late"])
            return request
        for file in files:
            os.close(file)


def _set(beginnings: list[str], variables: dict[str, str]) -> None:
    """Make `variables` the only ones of this process whose names begin so."""
    for name in [name for name in os.environ if name.startswith(tuple(beginnings))]:
        del os.environ[name]
    os.environ.update(variables)


def _become_guard(parent: int, held: int, output: int, status: int) -> None:
    """Lead a new session, with the standard streams of a guard, and fork the command. Returns in the command alone.

    held: file whose end says that the parent has ended. status: gets the guard's process id, then the exit code.
    """
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for file, stream in ((held, 0), (output, 1), (output, 2)):
        os.dup2(file, stream)
    os.close(held)
    os.close(output)
    os.write(status, b"%d\n" % os.getpid())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        command = os.fork()
    if command != 0:
        _guard(command, status)
    os.close(status)
    guard.die_with_guard()
    os.environ[guard.PARENT_VARIABLE] = str(parent)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def _guard(command: int, status: int) -> None:
    """Wait for the command and tell its exit code, as `guard.main` does. Does not return."""
    threading.Thread(target=guard.kill_group_when_parent_dies, daemon=True).start()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the command gets it too: wait for its end
    _, ended = os.waitpid(command, 0)
    os.write(status, b"%d\n" % guard.shells_code(os.waitstatus_to_exitcode(ended)))
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
