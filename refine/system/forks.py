"""Commands as forks of a process that has imported their modules once (`refine.system.fork_server`), on Linux.

Such a command behaves as one that is started anew: it has its own session, its guard, its standard streams, its exit
code. What libraries read from the environment while they are imported must be right, too. So the server has the
environment and the folder of its commands; a command with others is started anew. Only the variables of MLflow and
Prefect may differ, which the modules do not read: the flow sets some of them when it connects.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

log = logging.getLogger(__name__)

LATE = ("MLFLOW_", "PREFECT_")  # variables that are set in the fork


@dataclass
class Forked:
    """A command's guard, with what `subprocess.Popen` would give. stdin: the guard ends the command when it is closed.
    status: the guard writes its exit code there."""

    pid: int
    stdin: IO[bytes]
    stdout: IO[bytes]
    status: IO[bytes]
    code: int | None = None

    def wait(self) -> int:
        """The exit code of the guard; minus the signal's number if it was killed and could not tell one."""
        if self.code is None:
            told = self.status.read().strip()
            self.code = int(told) if told else -signal.SIGKILL
            self.status.close()
        return self.code


class ForkServer:
    """Starts commands `PYTHON -m MODULE ...` as forks of one process.

    modules: what that process imports, once. It starts with `prepare` or with the first command, and ends with this
    process. It serves the environment and the folder that it was started with.
    """

    def __init__(self, *modules: str) -> None:
        self.modules = modules
        self._place: tuple[dict[str, str], str] | None = None
        self._connection: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def able(self) -> bool:
        """Whether commands can start as forks: on Linux, as long as the server does not fail."""
        return sys.platform == "linux" and (self._place is None or self._connection is not None)

    def prepare(self, environment: Mapping[str, str]) -> None:
        """Start to import the modules, for commands with `environment` in the present folder. Returns at once."""
        with self._lock:
            self._serves(environment, os.getcwd())

    def start(self, argv: Sequence[str], environment: Mapping[str, str], cwd: str | None = None) -> Forked | None:
        """The guard of the command `argv`. None if this server cannot start it: the caller starts it anew then."""
        if list(argv[:2]) != [sys.executable, "-m"]:
            return None
        late = {name: value for name, value in environment.items() if name.startswith(LATE)}
        request = {"module": argv[2], "arguments": list(argv[3:]), "parent": os.getpid(), "late": [LATE, late]}
        with self._lock:
            if not self._serves(environment, cwd or os.getcwd()) or self._connection is None:
                return None
            try:
                return _ask(self._connection, json.dumps(request).encode())
            except OSError as error:
                log.warning("from now on each process imports its modules itself: no fork of them (%s)", error)
                self.close()
                return None

    def close(self) -> None:
        """End the server, for good. Its commands go on."""
        if self._connection is not None and self._process is not None:
            self._connection.close()
            self._process.kill()  # it may still import
            self._process.wait()
        self._connection = self._process = None

    def _serves(self, environment: Mapping[str, str], folder: str) -> bool:
        """Whether there is a server for commands with this environment and folder. The first one starts it."""
        place = {name: value for name, value in environment.items() if not name.startswith(LATE)}, folder
        if self._place is None and sys.platform == "linux":
            self._place = place
            self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "refine.system.fork_server", *self.modules],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C ends the flow, and the server after it
                    env=dict(environment),
                    cwd=folder,
                )
            atexit.register(self.close)
        return self._connection is not None and self._place == place


def _ask(connection: socket.socket, request: bytes) -> Forked:
    """Send the request with one end of three pipes. Raises OSError: the server has ended, or refuses to fork."""
    (held, stdin), (stdout, output), (status, told) = os.pipe(), os.pipe(), os.pipe()
    ours: tuple[IO[bytes], ...] = (os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb"), os.fdopen(status, "rb"))
    try:
        try:
            socket.send_fds(connection, [request], [held, output, told])
        finally:
            for file in (held, output, told):
                os.close(file)
        if not (number := ours[2].readline()):
            raise OSError("it runs threads, or lacks a module")
    except OSError:
        for one in ours:
            with contextlib.suppress(OSError):
                one.close()
        raise
    return Forked(int(number), ours[0], ours[1], ours[2])
