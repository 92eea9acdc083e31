"""The MLflow that records go to: what MLFLOW_TRACKING_URI names, or the server of `refine up`, or else a SQLite file
under $REFINE_HOME.

`connect` finds out at once, in seconds and before any long work, whether it can be written to.
"""

from __future__ import annotations

import contextlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from refine import paths
from refine.errors import ServiceError, reason
from refine.system.files import why_not_writable
from refine.system.local_services import services_state, supervisor_runs
from refine.tracking import connection, outbox

if TYPE_CHECKING:
    from mlflow import MlflowClient

VARIABLE = "MLFLOW_TRACKING_URI"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # which pages MLflow shows: charts of training runs
PATIENCE = 5.0  # seconds that a server has to answer before work starts
# Set before mlflow is imported. A request that fails is tried again for about half a minute, not for many minutes.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def tracking_uri() -> str:
    """Where MLflow's records are kept."""
    return os.environ.get(VARIABLE) or running_server() or f"sqlite:///{paths.home() / 'mlflow.db'}"


def running_server() -> str | None:
    """The MLflow server that `refine up` keeps running: models that it was given come from it alone. One that is away
    for a while is still the one: what was meant for it never goes to a file beside it."""
    return services_state().get("mlflow") if supervisor_runs() else None


def artifact_root() -> str | None:
    """Where artifacts of a new experiment are kept; None where a server is named or runs, which decides."""
    return None if os.environ.get(VARIABLE) or running_server() else (paths.home() / "mlartifacts").as_uri()


def without_password(uri: str) -> str:
    """`uri` as it may be printed: no password, no user."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def connect(uri: str | None = None) -> MlflowClient:
    """A client of `uri` (default: `tracking_uri()`), known to answer; what it had not taken earlier is delivered.

    Raises ServiceError: the server does not answer, refuses, or the database cannot be written to.
    """
    uri = uri or tracking_uri()
    check_answers(uri)
    mlflow = _mlflow()
    _use(mlflow, uri)
    try:
        with connection.quickly_made(uri):
            client: MlflowClient = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
    except Exception as error:  # whatever the store, the driver or the server makes of it
        raise ServiceError(f"MLflow at {without_password(uri)} cannot be used: {_reason(error)}{_advice()}") from None
    outbox.deliver(client)
    return client


def check_answers(uri: str, patience: float = PATIENCE) -> None:
    """Raises ServiceError, within about `patience` seconds, where `uri` is a server that does not answer, or a SQLite
    file whose folder cannot be written to. Imports nothing heavy."""
    if uri.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(_request(f"{uri.rstrip('/')}/health"), timeout=patience):
                return
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise ServiceError(
                    f"MLflow server {without_password(uri)} refuses access ({error.code}): set "
                    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
                ) from None
            if error.code >= 500:
                raise ServiceError(f"MLflow server {without_password(uri)} fails ({error.code}){_advice()}") from None
        except (OSError, ValueError) as error:
            raise ServiceError(
                f"MLflow server {without_password(uri)} does not answer: {_reason(error)}{_advice()}"
            ) from None
    elif uri.startswith("sqlite:///"):
        writable(connection.file_of(uri).parent)


def writable(folder: Path) -> None:
    """Make `folder`, and write and remove a file in it. Raises ServiceError where that fails."""
    if said := why_not_writable(folder):
        raise ServiceError(f"cannot write to {folder}: {said}; set REFINE_HOME to a folder that can be written to")


def experiment_id(client: MlflowClient, name: str) -> str:
    """The id of the experiment `name`, made if there is none. Two at once make one."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_root(), tags=KIND))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _use(mlflow: Any, uri: str) -> None:
    """Make `uri` the one that MLflow's functions without a client use. MLflow also writes it into the environment,
    where it would look as if the user had named a server: what was there is put back."""
    named = os.environ.get(VARIABLE)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    if named is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = named


def _mlflow() -> Any:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import logging

    for noisy in ("mlflow.store.db.utils", "mlflow.store.model_registry", "alembic", "mlflow.tracking"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    import mlflow

    return mlflow


def _request(url: str) -> urllib.request.Request:
    """A request with the credentials that MLflow's own client would send."""
    import base64

    parts = urlsplit(url)
    user = os.environ.get("MLFLOW_TRACKING_USERNAME") or unquote(parts.username or "")
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or unquote(parts.password or "")
    request = urllib.request.Request(without_password(url))
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    elif user:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    return request


def _reason(error: Exception) -> str:
    """The first line of an error, without the long tails that drivers add."""
    told = getattr(error, "reason", None) or error
    return reason(str(told).split("\n")[0] or type(error).__name__)


def _advice() -> str:
    if os.environ.get(VARIABLE):
        return f"; start it (`refine up`), mend {VARIABLE}, or unset it to record in $REFINE_HOME/mlflow.db"
    return "; check $REFINE_HOME"


PREFIX = "sqlite:///"


def file_of(uri: str) -> Path:
    """The file that a sqlite:/// address names."""
    return Path(unquote(uri.removeprefix(PREFIX)))


@contextlib.contextmanager
def quickly_made(uri: str) -> Iterator[None]:
    """While this lasts, a SQLite file that is not there yet is made without waiting for the disk at each of its tables;
    from its end on, every change is on the disk before it counts as made, as ever. Other databases are left alone."""
    if not uri.startswith(PREFIX) or file_of(uri).exists():
        yield
        return
    from sqlalchemy import Engine, event

    opened: list[Any] = []

    def hurry(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")
        opened.append(connection)

    event.listen(Engine, "connect", hurry)
    try:
        yield
    finally:
        event.remove(Engine, "connect", hurry)
        for connection in opened:
            with contextlib.suppress(Exception):  # it is closed already
                connection.execute("PRAGMA synchronous = FULL")
