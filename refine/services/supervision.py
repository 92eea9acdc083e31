"""Prefect's server, MLflow's server, a worker and a janitor on loopback, kept running by supervisord.

Everything lies in $REFINE_HOME/services: supervisord.conf, state.json, a log each, Prefect's database. supervisord
starts again what dies; each program runs on a leash, so nothing is left over, whoever is killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
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
from refine.errors import ServiceError
from refine.services import environment, prefect_api
from refine.tracking.connection import writable

HOST = "127.0.0.1"
PATIENCE = 120.0  # seconds that the servers have to answer
PROGRAMS = ("prefect", "mlflow", "worker", "janitor")


@dataclass(frozen=True)
class Wanted:
    """What `refine up` starts. Databases: SQLAlchemy URLs; None is SQLite in $REFINE_HOME. artifacts: folder or s3://."""

    prefect_port: int = 4200
    mlflow_port: int = 5000
    pool: str = "gpu"
    prefect_database: str | None = None
    mlflow_database: str | None = None
    artifacts: str | None = None


@dataclass(frozen=True)
class Program:
    """A supervised program: its state as supervisord calls it (RUNNING, STARTING, FATAL, ...), and since when [s]."""

    name: str
    state: str
    pid: int
    seconds: float


def folder() -> Path:
    """Where the services keep what they need."""
    return paths.home() / "services"


def up(wanted: Wanted, say: Callable[[str], None] = print) -> dict[str, str]:
    """Start what does not run, wait until it answers, and return the addresses (prefect, prefect_api, mlflow).

    Raises ServiceError: $REFINE_HOME cannot be written to, a port is taken, a server does not come up. Then, and on
    Ctrl-C, nothing stays behind.
    """
    if supervisor_runs():
        say("the services run already")
        return state()
    writable(folder())
    for name, port in (("prefect", wanted.prefect_port), ("mlflow", wanted.mlflow_port)):
        _check_port(port, name)
    addresses = {
        "prefect": f"http://{HOST}:{wanted.prefect_port}",
        "prefect_api": f"http://{HOST}:{wanted.prefect_port}/api",
        "mlflow": f"http://{HOST}:{wanted.mlflow_port}",
    }
    _write_private(_configuration_file(), configuration(wanted, addresses))
    try:
        _start_supervisor()
        _write_private(prefect_api.state_file(), json.dumps({**addresses, "pool": wanted.pool}))
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
    for left in (prefect_api.state_file(), _socket_file()):
        left.unlink(missing_ok=True)
    return ran


def state() -> dict[str, str]:
    """What `up` noted: addresses and pool; empty where nothing was started."""
    try:
        return dict(json.loads(prefect_api.state_file().read_text(encoding="utf-8")))
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


def supervisor_runs() -> bool:
    """Whether the supervisor of this $REFINE_HOME runs."""
    return supervisor_pid() is not None


def supervisor_pid() -> int | None:
    """Process id of the supervisor of this $REFINE_HOME, if it runs."""
    try:
        pid = int((folder() / "supervisord.pid").read_text())
        process = psutil.Process(pid)
        ours = str(_configuration_file()) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, psutil.Error):
        return None
    return pid if ours else None


def configuration(wanted: Wanted, addresses: dict[str, str]) -> str:
    """supervisord.conf, with every program on its leash."""
    home = paths.home()
    server = ["--host", HOST, "--port"]
    bin_folder = Path(sys.executable).parent
    commands = {
        "prefect": [str(bin_folder / "prefect"), "server", "start", *server, str(wanted.prefect_port)],
        "mlflow": [str(bin_folder / "mlflow"), "server", *server, str(wanted.mlflow_port), "--workers", "1"],
        "worker": [sys.executable, "-m", "refine.services.worker", wanted.pool],
        "janitor": [sys.executable, "-m", "refine.services.janitor"],
    }
    client = {"PREFECT_API_URL": addresses["prefect_api"], "MLFLOW_TRACKING_URI": addresses["mlflow"]}
    variables = {
        "prefect": {"PREFECT_UI_API_URL": addresses["prefect_api"]}
        | ({"PREFECT_API_DATABASE_CONNECTION_URL": wanted.prefect_database} if wanted.prefect_database else {}),
        "mlflow": {
            "MLFLOW_BACKEND_STORE_URI": wanted.mlflow_database or f"sqlite:///{home / 'mlflow.db'}",
            "MLFLOW_ARTIFACTS_DESTINATION": wanted.artifacts or (home / "mlartifacts").as_uri(),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
        "worker": client,
        "janitor": client,
    }
    sections = [_head()]
    sections += [_program(name, commands[name], variables[name]) for name in PROGRAMS]
    return "\n".join(sections)


def _head() -> str:
    place = folder()
    return f"""[unix_http_server]
file={_socket_file()}
chmod=0700

[supervisord]
logfile={place}/supervisord.log
pidfile={place}/supervisord.pid
childlogdir={place}
umask=077

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://{_socket_file()}
"""


def _program(name: str, command: list[str], variables: dict[str, str]) -> str:
    shared = {
        **environment.variables(),
        "REFINE_HOME": str(paths.home()),
        "PREFECT_HOME": os.environ.get("PREFECT_HOME") or str(folder() / "prefect"),
        "PYTHONUNBUFFERED": "1",
    }
    told = ",".join(f'{key}="{_escaped(value)}"' for key, value in {**shared, **variables}.items())
    leashed = " ".join(f'"{_escaped(part)}"' for part in [sys.executable, "-m", "refine.services.leash", *command])
    return f"""[program:{name}]
command={leashed}
environment={told}
directory={_escaped(str(Path.cwd()))}
autorestart=true
startsecs=3
startretries=5
stopwaitsecs=20
redirect_stderr=true
stdout_logfile={folder()}/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=1
"""


def _escaped(value: str) -> str:
    """supervisord reads % as an expansion, and quotes as ends."""
    return value.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')


def _start_supervisor() -> None:
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(_configuration_file())]
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
    try:
        with urllib.request.urlopen(url, timeout=1.0):
            return True
    except (OSError, ValueError):
        return False


def _last_line(name: str) -> str:
    try:
        lines = (folder() / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "it wrote nothing"
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "it wrote nothing")


def _check_port(port: int, name: str) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
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


def _configuration_file() -> Path:
    return folder() / "supervisord.conf"


def _socket_file() -> Path:
    """A path of its own for each home, short enough for a Unix socket (108 bytes)."""
    mark = hashlib.sha256(str(paths.home()).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"refine-{os.getuid()}-{mark}.sock"


def _write_private(path: Path, text: str) -> None:
    """Only for this user's eyes: addresses of databases may hold passwords."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.touch(mode=0o600)
    beside.write_text(text, encoding="utf-8")
    shutil.move(beside, path)
