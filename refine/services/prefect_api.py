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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from refine.errors import ServiceError, reason, without_secrets
from refine.services import environment, prefect_secret, prefect_server
from refine.system.addresses import basic, host_of, http_address, reach_directly, request
from refine.system.local_services import services_state
from refine.system.processes import PARENT_VARIABLE
from refine.tracking.connection import writable

VARIABLE = "PREFECT_API_URL"
TEMPORARY = "REFINE_TEMPORARY_PREFECT"  # set while the server is a temporary one, without pages
PATIENCE = 5.0  # seconds that the server in PREFECT_API_URL has to answer
START = 90.0  # seconds that a temporary server has to start


@dataclass(frozen=True)
class Api:
    """A Prefect API. url: its address, without credentials. credentials: `user:password`; empty if it asks for none.
    ours: whether it is that of `refine up`."""

    url: str
    credentials: str
    ours: bool

    def variables(self) -> dict[str, str]:
        """The environment variables with which Prefect's clients use it."""
        return {VARIABLE: self.url} | ({prefect_secret.CLIENT: self.credentials} if self.credentials else {})


def chosen() -> Api | None:
    """The API of PREFECT_API_URL, or else of `refine up`. None if there is none. Raises SettingError: PREFECT_API_URL
    is no address."""
    reach_directly()
    named, credentials = os.environ.get(VARIABLE), ""
    if named:
        url, credentials = http_address(named, VARIABLE, "http://HOST:PORT/api")
    else:
        url = running_server() or ""
    if not url:
        return None
    secret = prefect_secret.secret_of(url)
    return Api(url, credentials or secret or os.environ.get(prefect_secret.CLIENT, ""), secret is not None)


@contextlib.contextmanager
def prefect_api() -> Iterator[str]:
    """Sets PREFECT_API_URL to an API for the duration of the context, and returns it.

    A temporary server starts in the background; `wait_until_ready` waits for it. Raises ServiceError: the server in
    PREFECT_API_URL does not answer or refuses, or $REFINE_HOME cannot be written to.
    """
    api = chosen()
    if api:
        check_answers(api)
        with _set(api.variables()):
            environment.prepare(quiet=True)
            yield api.url
            _send_logs()
        return
    environment.prepare(quiet=True)
    writable(Path(os.environ["PREFECT_HOME"]))
    port = free_port()
    api = Api(f"http://127.0.0.1:{port}/api", prefect_secret.random_secret(), True)
    guarded = {prefect_secret.SERVER: api.credentials, prefect_server.ORIGINS: f"http://127.0.0.1:{port}"}
    server = subprocess.Popen(
        [sys.executable, "-m", "refine.services.temporary_prefect", str(port)],
        env={**os.environ, **guarded, PARENT_VARIABLE: str(os.getpid())},
        stdout=subprocess.DEVNULL,
        stderr=_log(),
        start_new_session=True,  # Ctrl-C ends the flow, and the server after it
    )
    try:
        with _set({TEMPORARY: "1", **api.variables()}):
            try:
                yield api.url
            finally:
                _send_logs()
    finally:
        _stop(server)


@contextlib.contextmanager
def using(api: Api) -> Iterator[None]:
    """For the block, Prefect's clients of this process use `api`."""
    environment.prepare(quiet=True)
    with _set(api.variables()):
        yield


def wait_until_ready(url: str, patience: float = START) -> None:
    """Wait until the API at `url` answers. Raises ServiceError after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not answers(url, 5.0):
        if time.monotonic() > deadline:
            log = f"; its log is {_log_file()}" if "PREFECT_HOME" in os.environ else ""
            raise ServiceError(f"Prefect's server {without_secrets(url)} does not answer after {patience:.0f} s{log}")
        time.sleep(0.1)


def answers(url: str, patience: float = 1.0) -> bool:
    """Whether a Prefect API answers at `url`."""
    reach_directly()
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=patience) as response:
            return json.load(response) is True
    except (OSError, ValueError, HTTPException, RecursionError):
        return False


def check_answers(api: Api) -> None:
    """Raises ServiceError if the Prefect server does not answer, or refuses its clients access."""
    try:
        with urllib.request.urlopen(request(f"{api.url}/health"), timeout=PATIENCE):
            pass
        why = _refusal(api)
    except urllib.error.HTTPError as error:
        why = f"HTTP {error.code} (its address must end in /api)"
    except (OSError, ValueError, HTTPException) as error:
        why = reason(without_secrets(str(getattr(error, "reason", error)), os.environ.get(VARIABLE, "")))
    if why:
        raise ServiceError(
            f"Prefect server {without_secrets(api.url)} does not answer: {why}; start it with `refine up`, correct "
            f"{VARIABLE}, or unset it to run without a server"
        )


def _refusal(api: Api) -> str:
    """Asks for the server's version, which only its users may see. Returns why that fails; empty if it does not.

    Raises ServiceError: the server asks for a password, and has not got the right one.
    """
    key = os.environ.get("PREFECT_API_KEY")
    authorization = basic(api.credentials) if api.credentials else f"Bearer {key}" if key else ""
    try:
        with urllib.request.urlopen(request(f"{api.url}/version", authorization), timeout=PATIENCE):
            return ""
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):
            return ""
        raise ServiceError(
            f"Prefect server {without_secrets(api.url)} refuses access (HTTP {error.code}): set "
            f"{prefect_secret.CLIENT} to its user:password (`refine status --secret` prints that of `refine up`)"
        ) from None


def running_server() -> str | None:
    """The API of the Prefect server that `refine up` started. None if it does not answer."""
    url = services_state().get("prefect_api")
    reach_directly(host_of(url or ""))
    return url if url and answers(url, 2.0) else None


def server() -> Api:
    """The API of PREFECT_API_URL or of `refine up`. Raises ServiceError: there is none, or it does not answer."""
    api = chosen()
    if api is None:
        raise ServiceError(f"no Prefect server runs: start one with `refine up`, or set {VARIABLE} to yours")
    check_answers(api)
    return api


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
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    _refresh()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _refresh()


def _refresh() -> None:
    """Make Prefect, if it is imported already, read its settings from the environment again."""
    if "prefect.context" in sys.modules:
        from prefect.context import refresh_global_settings_context
        from prefect.logging.configuration import setup_logging

        refresh_global_settings_context()
        setup_logging(incremental=False)
