"""Starts and stops Prefect's server, MLflow's server, a worker and a janitor; supervisord keeps them running.

$REFINE_HOME/services holds supervisord.conf, state.json, a log for each program, and Prefect's database. supervisord
restarts a program that dies. If supervisord itself is killed, all programs end (`refine.services.supervised_program`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
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
from refine.errors import ServiceError, SettingError, reason
from refine.services import (
    artifact_locations,
    flow_runs,
    last_records,
    prefect_secret,
    server_databases,
    supervisord_conf,
)
from refine.services.supervisord_conf import PROGRAMS, UpOptions
from refine.system.addresses import basic, reach_directly, request
from refine.system.files import private_folder, write_private
from refine.system.leftovers import sweep
from refine.system.local_services import (
    OWN_DATABASE,
    configuration_file,
    services_folder,
    services_state,
    state_file,
    supervisor_pid,
    supervisor_runs,
)
from refine.system.locks import Locked, hold
from refine.tracking.connection import SQLITE_PREFIX, check_answers, make_database, sqlite_file, writable

PATIENCE = 120.0  # seconds that the servers have to answer


@dataclass(frozen=True)
class Program:
    """A supervised program. state: supervisord's word (RUNNING, STARTING, FATAL, ...). seconds: since it started."""

    name: str
    state: str
    pid: int
    seconds: float


def up(options: UpOptions, say: Callable[[str], None] = print) -> dict[str, str]:
    """Start the services, wait until they answer, and return their addresses (prefect, prefect_api, mlflow). If they
    run already, return what was recorded of them.

    After an error and after Ctrl-C no service that it started runs. Raises SettingError: a database's address has the
    wrong form, or both ports are the same. Raises ServiceError: $REFINE_HOME cannot be written to, another `refine up`
    is starting, a port is taken, a database or the artifact store does not answer, or a server does not come up.
    """
    writable(services_folder())
    try:
        with hold(services_folder() / "up.lock", f"process {os.getpid()}", patience=0.0):
            return _up(options, say)
    except Locked as locked:
        raise ServiceError(
            f"another `refine up` ({locked.holder}) is starting the services: wait for it; `refine status` shows them"
        ) from None


def _up(options: UpOptions, say: Callable[[str], None]) -> dict[str, str]:
    if supervisor_runs():
        say("the services run already")
        return services_state()
    reach_directly(options.host)
    sweep(services_folder())
    _check(options)
    _prepare_mlflow(options, say)
    addresses = supervisord_conf.addresses(options)
    write_private(configuration_file(), supervisord_conf.render(options, _socket_file()))
    try:
        database = (options.mlflow_database or "").partition(":")[0]
        state = {**addresses, "pool": options.pool, OWN_DATABASE: database}
        write_private(state_file(), json.dumps(state))
        _start_supervisor()
        _wait(addresses, options.pool, say)
    except BaseException:
        _stop()
        raise
    return addresses


def _check(options: UpOptions) -> None:
    """Refuses what can be refused before a process is started. Raises as `up` does."""
    if options.prefect_port == options.mlflow_port:
        port = options.mlflow_port
        raise SettingError(f"--prefect-port and --mlflow-port are both {port}: each server needs its own")
    for name, port in (("prefect", options.prefect_port), ("mlflow", options.mlflow_port)):
        _check_port(options.host, port, name)
    for name, database in (("prefect", options.prefect_database), ("mlflow", options.mlflow_database)):
        if database:
            server_databases.check(database, name)
    if options.artifacts:
        server_databases.check_artifacts(options.artifacts)


def _prepare_mlflow(options: UpOptions, say: Callable[[str], None]) -> None:
    """If MLflow's database is a SQLite file: make it if it is missing, and let the server reach all models."""
    uri = supervisord_conf.mlflow_database(options)
    if uri.startswith(SQLITE_PREFIX):
        check_answers(uri)
        make_database(uri)
        artifact_locations.use_store(sqlite_file(uri).absolute(), supervisord_conf.artifacts(options), say)


def down(say: Callable[[str], None] = lambda line: None) -> bool:
    """Stop the worker, end its runs in MLflow and Prefect, then stop the supervisor and everything it started. If the
    supervisor is dead, end the runs that died with it, as far as that is possible without the servers. Returns whether
    the supervisor ran. `say` gets a line for each run.
    """
    left, services = state_file().exists(), services_state()
    if supervisor_runs():
        _stop_worker()
        last_records.end_runs(services.get("mlflow"), say)
        last_records.end_flow_runs(services, say)
    ran = _stop()
    if left and not ran:
        last_records.end_runs_left(services, say)
    return ran


def flow_runs_in_progress() -> list[flow_runs.FlowRun]:
    """The Prefect runs that `down` ends or leaves without a server. Empty if the services do not run, or if Prefect's
    server does not answer."""
    worker = next((one.pid for one in programs() if one.name == "worker" and one.pid), None)
    if worker is None:
        return []
    try:
        return flow_runs.in_progress(services_state(), worker)
    except Exception:  # Prefect's client raises its own; `down` goes on, and says it
        return []


def _stop_worker() -> None:
    """Stop the worker, and wait until its runs have ended with it."""
    pids = [one.pid for one in programs() if one.name == "worker" and one.pid]
    with contextlib.suppress(psutil.Error):
        below = [process for pid in pids for process in psutil.Process(pid).children(recursive=True)]
        with contextlib.suppress(OSError, xmlrpc.client.Error), _supervisor() as server:
            server.supervisor.stopProcess("worker")
        psutil.wait_procs(below, timeout=20)


def _stop() -> bool:
    """Stop the supervisor and everything it started. Returns whether the supervisor ran."""
    pid = supervisor_pid()
    if pid is not None:
        process = psutil.Process(pid)
        with contextlib.suppress(OSError, xmlrpc.client.Error), _supervisor() as server:
            server.supervisor.shutdown()
        try:
            process.wait(timeout=40)
        except psutil.TimeoutExpired:
            process.kill()  # its programs end with it
            process.wait(timeout=10)
    for left in (state_file(), _socket_file()):
        left.unlink(missing_ok=True)
    return pid is not None


def programs() -> list[Program]:
    """The supervised programs. Empty if the supervisor does not run."""
    if supervisor_pid() is None:
        return []
    try:
        with _supervisor() as server:
            listed: Any = server.supervisor.getAllProcessInfo()
    except (OSError, xmlrpc.client.Error):
        return []
    found = {one["name"]: one for one in listed}
    return [
        Program(name, one["statename"], one["pid"], max(0.0, one["now"] - one["start"]) if one["pid"] else 0.0)
        for name in PROGRAMS
        if (one := found.get(name))
    ]


def _start_supervisor() -> None:
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(configuration_file())]
    # In a session of its own, so that Ctrl-C in this terminal does not end it.
    started = subprocess.run(command, capture_output=True, text=True, start_new_session=True)
    if started.returncode:
        output = " ".join((started.stderr or started.stdout).split())[-300:]
        raise ServiceError(f"supervisord does not start: {output}")
    deadline = time.monotonic() + 10
    while supervisor_pid() is None or not _socket_file().exists():
        if time.monotonic() > deadline:
            raise ServiceError(f"supervisord does not start; its log is {services_folder() / 'supervisord.log'}")
        time.sleep(0.05)


def _wait(addresses: dict[str, str], pool: str, say: Callable[[str], None]) -> None:
    api = addresses["prefect_api"]
    waiting = {
        "prefect": f"{api}/health",
        "mlflow": f"{addresses['mlflow']}/health",
        "worker": f"{api}/work_pools/{pool}",  # the worker creates a pool that does not exist
    }
    deadline = time.monotonic() + PATIENCE
    first: dict[str, int] = {}
    while waiting:
        for name, url in list(waiting.items()):
            if _answers(url):
                say(f"{name} answers at {addresses[name]}" if name in addresses else f"{name} waits for runs")
                del waiting[name]
        if waiting and not supervisor_runs():
            raise ServiceError("the supervisor was ended while the services started, by `refine down` or a signal")
        failed = [one.name for one in programs() if one.name in waiting and _died(one, first)]
        if failed or time.monotonic() > deadline:
            name = (failed or list(waiting))[0]
            how = "ends instead of answering" if failed else f"does not answer after {PATIENCE:.0f} s"
            raise ServiceError(f"{name} {how}: {_last_line(name)}; its log is {services_folder() / f'{name}.log'}")
        time.sleep(0.2)


def _died(program: Program, first: dict[str, int]) -> bool:
    """Whether a program has ended, or was restarted: its process id differs from the `first` one seen."""
    if program.state in ("FATAL", "BACKOFF", "EXITED"):
        return True
    return bool(program.pid) and first.setdefault(program.name, program.pid) != program.pid


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(request(url, basic(prefect_secret.kept() or "")), timeout=1.0):
            return True
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _last_line(name: str) -> str:
    try:
        lines = (services_folder() / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "it wrote nothing"
    return next((reason(line) for line in reversed(lines) if line.strip()), "it wrote nothing")


def _check_port(host: str, port: int, name: str) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ServiceError(f"--host {host}: {error.strerror}; name an address of this machine") from None
            raise ServiceError(
                f"port {port} is taken{_holder(port)}: end that process, or choose another port with --{name}-port"
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
    """A different path for each home, short enough for a Unix socket (108 bytes), in a folder of this user alone."""
    mark = hashlib.sha256(str(paths.home()).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"refine-services-{os.getuid()}"
    return private_folder(folder, "set TMPDIR to a folder of yours") / f"{mark}.sock"
