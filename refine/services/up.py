"""Prefect's server, MLflow's server, a worker and a janitor on loopback, kept running by supervisord.

Everything lies in $REFINE_HOME/services: supervisord.conf, state.json, a log each, Prefect's database. supervisord
starts again what dies; each program runs on a leash, so nothing is left over, whoever is killed.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import xmlrpc.client
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from refine import paths
from refine.errors import ServiceError, SettingError
from refine.services import server_databases
from refine.services.supervisord_conf import PROGRAMS, SERVER_SECRET, Wanted, addresses_of, configuration, folder
from refine.system.files import file_beside
from refine.system.local_services import configuration_file, state_file, supervisor_pid, supervisor_runs
from refine.tracking.connection import writable

PATIENCE = 120.0  # seconds that the servers have to answer


@dataclass(frozen=True)
class Program:
    """A supervised program: its state as supervisord calls it (RUNNING, STARTING, FATAL, ...), and since when [s]."""

    name: str
    state: str
    pid: int
    seconds: float


def up(wanted: Wanted, say: Callable[[str], None] = print) -> dict[str, str]:
    """Start what does not run, wait until it answers, and return the addresses (prefect, prefect_api, mlflow).

    Raises SettingError: a database's address is none, or one port for both; ServiceError: $REFINE_HOME cannot be
    written to, a port is taken, a database or the store of models does not answer, a server does not come up. Then,
    and on Ctrl-C, nothing stays behind.
    """
    if supervisor_runs():
        say("the services run already")
        return state()
    writable(folder())
    if wanted.prefect_port == wanted.mlflow_port:
        raise SettingError(f"--prefect-port and --mlflow-port are both {wanted.mlflow_port}: each server needs its own")
    for name, port in (("prefect", wanted.prefect_port), ("mlflow", wanted.mlflow_port)):
        _check_port(wanted.host, port, name)
    for name, database in (("prefect", wanted.prefect_database), ("mlflow", wanted.mlflow_database)):
        if database:
            server_databases.check(database, name)
    if wanted.artifacts:
        server_databases.check_artifacts(wanted.artifacts)
    addresses = addresses_of(wanted)
    _write_private(configuration_file(), configuration(wanted, _socket_file()))
    try:
        _start_supervisor()
        _write_private(state_file(), json.dumps({**addresses, "pool": wanted.pool}))
        _wait(addresses, wanted.pool, say)
    except BaseException:
        down()
        raise
    return addresses


def down() -> bool:
    """Stop the supervisor and all it started; whether anything ran."""
    ran = False
    pid = supervisor_pid()
    if pid is not None:
        ran = True
        process = psutil.Process(pid)
        with contextlib.suppress(OSError, xmlrpc.client.Error), _supervisor() as server:
            server.supervisor.shutdown()
        try:
            process.wait(timeout=40)
        except psutil.TimeoutExpired:
            process.kill()  # what it leads is on a leash
            process.wait(timeout=10)
    for left in (state_file(), _socket_file()):
        left.unlink(missing_ok=True)
    return ran


def state() -> dict[str, str]:
    """What `up` noted: addresses and pool; empty where nothing was started."""
    try:
        return dict(json.loads(state_file().read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def programs() -> list[Program]:
    """The supervised programs; empty where the supervisor does not run."""
    if supervisor_pid() is None:
        return []
    try:
        with _supervisor() as server:
            told: Any = server.supervisor.getAllProcessInfo()
    except (OSError, xmlrpc.client.Error):
        return []
    found = {one["name"]: one for one in told}
    return [
        Program(name, one["statename"], one["pid"], max(0.0, one["now"] - one["start"]) if one["pid"] else 0.0)
        for name in PROGRAMS
        if (one := found.get(name))
    ]


def _start_supervisor() -> None:
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(configuration_file())]
    # It leaves this process's group and terminal: Ctrl-C here is not its end.
    started = subprocess.run(command, capture_output=True, text=True, start_new_session=True)
    if started.returncode:
        said = " ".join((started.stderr or started.stdout).split())[-300:]
        raise ServiceError(f"supervisord does not start: {said}")
    deadline = time.monotonic() + 10
    while supervisor_pid() is None or not _socket_file().exists():
        if time.monotonic() > deadline:
            raise ServiceError(f"supervisord does not start; its log is {folder() / 'supervisord.log'}")
        time.sleep(0.05)


def _wait(addresses: dict[str, str], pool: str, say: Callable[[str], None]) -> None:
    api = addresses["prefect_api"]
    waiting = {
        "prefect": f"{api}/health",
        "mlflow": f"{addresses['mlflow']}/health",
        "worker": f"{api}/work_pools/{pool}",  # the worker makes its pool where there is none
    }
    deadline = time.monotonic() + PATIENCE
    first: dict[str, int] = {}
    while waiting:
        for name, url in list(waiting.items()):
            if _answers(url):
                say(f"{name} answers at {addresses[name]}" if name in addresses else f"{name} waits for runs")
                del waiting[name]
        failed = [one.name for one in programs() if one.name in waiting and _died(one, first)]
        if failed or time.monotonic() > deadline:
            name = (failed or list(waiting))[0]
            how = "ends instead of answering" if failed else f"does not answer after {PATIENCE:.0f} s"
            raise ServiceError(f"{name} {how}: {_last_line(name)}; its log is {folder() / f'{name}.log'}")
        time.sleep(0.2)


def _died(program: Program, first: dict[str, int]) -> bool:
    """Whether a program ended, or has another process than the `first` one seen (it was started again)."""
    if program.state in ("FATAL", "BACKOFF", "EXITED"):
        return True
    return bool(program.pid) and first.setdefault(program.name, program.pid) != program.pid


def _answers(url: str) -> bool:
    request = urllib.request.Request(url)
    if secret := os.environ.get(SERVER_SECRET):
        request.add_header("Authorization", "Basic " + base64.b64encode(secret.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=1.0):
            return True
    except (OSError, ValueError):
        return False


def _last_line(name: str) -> str:
    try:
        lines = (folder() / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "it wrote nothing"
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "it wrote nothing")


def _check_port(host: str, port: int, name: str) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ServiceError(f"--host {host}: {error.strerror}; name an address of this machine") from None
            raise ServiceError(
                f"port {port} is taken{_holder(port)}: end that, or choose another with --{name}-port"
            ) from None


def _holder(port: int) -> str:
    with contextlib.suppress(psutil.Error):
        for one in psutil.net_connections("tcp"):
            if one.laddr and one.laddr.port == port and one.status == psutil.CONN_LISTEN and one.pid:
                return f" by process {one.pid} ({psutil.Process(one.pid).name()})"
    return ""


@contextlib.contextmanager
def _supervisor() -> Iterator[xmlrpc.client.ServerProxy]:
    from supervisor.xmlrpc import SupervisorTransport

    transport = SupervisorTransport(None, None, serverurl=f"unix://{_socket_file()}")
    try:
        yield xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
    finally:
        transport.close()


def _socket_file() -> Path:
    """A path of its own for each home, short enough for a Unix socket (108 bytes)."""
    mark = hashlib.sha256(str(paths.home()).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"refine-{os.getuid()}-{mark}.sock"


def _write_private(path: Path, text: str) -> None:
    """Only for this user's eyes: addresses of databases may hold passwords."""
    with file_beside(path) as beside:
        beside.touch(mode=0o600)
        beside.write_text(text, encoding="utf-8")
