"""The Prefect API that a flow uses: PREFECT_API_URL, else the server of `refine up`, else a temporary server."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

from refine.errors import ServiceError
from refine.services import environment
from refine.system.local_services import services_state
from refine.system.processes import PARENT_VARIABLE
from refine.tracking.connection import without_password, writable

VARIABLE = "PREFECT_API_URL"
TEMPORARY = "REFINE_TEMPORARY_PREFECT"  # set while the server is a temporary one, without pages
PATIENCE = 5.0  # seconds that the server in PREFECT_API_URL has to answer
START = 90.0  # seconds that a temporary server has to start


@contextlib.contextmanager
def prefect_api() -> Iterator[str]:
    """Sets PREFECT_API_URL to an API for the duration of the context, and returns it.

    A temporary server starts in the background; `wait_until_ready` waits for it. Raises ServiceError: the server in
    PREFECT_API_URL does not answer, or $REFINE_HOME cannot be written to.
    """
    named = os.environ.get(VARIABLE) or running_server()
    if named:
        check_answers(named)
        with _set(VARIABLE, named):
            environment.prepare(quiet=True)
            yield named
            _send_logs()
        return
    environment.prepare(quiet=True)
    writable(Path(os.environ["PREFECT_HOME"]))
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    server = subprocess.Popen(
        [sys.executable, "-m", "refine.services.temporary_prefect", str(port)],
        env={**os.environ, PARENT_VARIABLE: str(os.getpid())},
        stdout=subprocess.DEVNULL,
        stderr=_log(),
        start_new_session=True,  # Ctrl-C ends the flow, and the server after it
    )
    try:
        with _set(TEMPORARY, "1"), _set(VARIABLE, url):
            try:
                yield url
            finally:
                _send_logs()
    finally:
        _stop(server)


def wait_until_ready(url: str, patience: float = START) -> None:
    """Wait until the API at `url` answers. Raises ServiceError after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not answers(url, 5.0):
        if time.monotonic() > deadline:
            log = f"; its log is {_log_file()}" if "PREFECT_HOME" in os.environ else ""
            raise ServiceError(f"Prefect's server {without_password(url)} does not answer after {patience:.0f} s{log}")
        time.sleep(0.1)


def answers(url: str, patience: float = 1.0) -> bool:
    """Whether a Prefect API answers at `url`."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=patience) as response:
            return json.load(response) is True
    except (OSError, ValueError, HTTPException, RecursionError):
        return False


def check_answers(url: str) -> None:
    """Raises ServiceError if the Prefect server at `url` does not answer."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=PATIENCE):
            return
    except urllib.error.HTTPError as error:
        reason = f"HTTP {error.code} (its address must end in /api)"
    except (OSError, ValueError, HTTPException) as error:
        reason = str(getattr(error, "reason", error))
    raise ServiceError(
        f"Prefect server {without_password(url)} does not answer: {reason}; start it with `refine up`, correct "
        f"{VARIABLE}, or unset it to run without a server"
    )


def running_server() -> str | None:
    """The API of the Prefect server that `refine up` started. None if it does not answer."""
    url = services_state().get("prefect_api")
    return url if url and answers(url, 2.0) else None


def server() -> str:
    """The API of PREFECT_API_URL or of `refine up`. Raises ServiceError: there is none, or it does not answer."""
    url = os.environ.get(VARIABLE) or running_server()
    if not url:
        raise ServiceError(f"no Prefect server runs: start one with `refine up`, or set {VARIABLE} to yours")
    check_answers(url)
    return url


def free_port() -> int:
    """A loopback port on which no program listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _send_logs() -> None:
    """Send Prefect's last log records now. After the server has ended, Prefect would print an error for them."""
    if "prefect.logging.handlers" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        APILogWorker.drain_all(timeout=5)
        EventsWorker.drain_all(timeout=5)


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(timeout=5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _log_file() -> Path:
    return Path(os.environ["PREFECT_HOME"]) / "server.log"


def _log() -> int:
    return os.open(_log_file(), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)


@contextlib.contextmanager
def _set(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    _refresh()
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
        _refresh()


def _refresh() -> None:
    """Make Prefect, if it is imported already, read its settings from the environment again."""
    if "prefect.context" in sys.modules:
        from prefect.context import refresh_global_settings_context
        from prefect.logging.configuration import setup_logging

        refresh_global_settings_context()
        setup_logging(incremental=False)
