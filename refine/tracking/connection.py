"""The connection to MLflow: the address in MLFLOW_TRACKING_URI, or else the server of `refine up`, or else a SQLite
file under $REFINE_HOME.

`connect` checks within seconds, before any long work, that MLflow answers.
"""

from __future__ import annotations

import contextlib
import os
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refine import paths
from refine.errors import ServiceError, reason, without_secrets
from refine.system.addresses import basic, host_of, http_address, reach_directly, request
from refine.system.files import flush, why_not_writable
from refine.system.leftovers import hidden, sweep
from refine.system.local_services import services_state, supervisor_runs
from refine.system.names import check_name
from refine.tracking import outbox, served_artifacts

if TYPE_CHECKING:
    from mlflow import MlflowClient

VARIABLE = "MLFLOW_TRACKING_URI"
SQLITE_PREFIX = served_artifacts.SQLITE_PREFIX
KIND = {"mlflow.experimentKind": "custom_model_development"}  # MLflow then shows charts of training runs
PATIENCE = 5.0  # time for a server to answer, before work starts [s]
# Set before mlflow is imported. MLflow retries a failed request for about half a minute, by default for many minutes.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def tracking_uri() -> str:
    """The address of the MLflow that records go to."""
    return os.environ.get(VARIABLE) or running_server() or f"{SQLITE_PREFIX}{paths.home() / 'mlflow.db'}"


def running_server() -> str | None:
    """The MLflow server that `refine up` started. Its models can be read only through it. While it is briefly down,
    records wait for it; they never go to the local database instead."""
    url = services_state().get("mlflow") if supervisor_runs() else None
    reach_directly(host_of(url or ""))
    return url


def artifact_root() -> str | None:
    """The address of a new experiment's artifacts; None if a server is in use, which decides itself."""
    return None if os.environ.get(VARIABLE) or running_server() else (paths.home() / "mlartifacts").as_uri()


def connect(uri: str | None = None) -> MlflowClient:
    """A client of `uri` (default: `tracking_uri()`), which has answered. Records that wait in the outbox are delivered.

    Raises ServiceError if the server does not answer or refuses, or if the database cannot be written.
    """
    uri = uri or tracking_uri()
    check_answers(uri)
    mlflow = _mlflow()
    _use(mlflow, uri)
    try:
        make_database(uri)
        client: MlflowClient = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # MLflow raises what its store, driver or server raise
        raise ServiceError(
            f"MLflow at {without_secrets(uri)} cannot be used: {_reason(error, uri)}{_advice()}"
        ) from None
    outbox.deliver(client)
    return client


def check_answers(uri: str, patience: float = PATIENCE) -> None:
    """Raise ServiceError, within about `patience` seconds, if `uri` is a server that does not answer, or a SQLite file
    in a folder that cannot be written; SettingError if it is no address. Does not import MLflow."""
    if uri.startswith(("http://", "https://")):
        shown, credentials = http_address(uri, f"MLflow's address ({VARIABLE})", "http://HOST:PORT")
        reach_directly()
        try:
            with urllib.request.urlopen(request(f"{shown}/health", authorization(credentials)), timeout=patience):
                return
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise ServiceError(
                    f"MLflow server {shown} refuses access ({error.code}): set "
                    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
                ) from None
            if error.code >= 500:
                raise ServiceError(f"MLflow server {shown} fails ({error.code}){_advice()}") from None
        except (OSError, ValueError, HTTPException) as error:
            raise ServiceError(f"MLflow server {shown} does not answer: {_reason(error, uri)}{_advice()}") from None
    elif uri.startswith(SQLITE_PREFIX):
        writable(sqlite_file(uri).parent)


def writable(folder: Path) -> None:
    """Make `folder`, then write and remove a file in it. Raises ServiceError if that fails."""
    if obstacle := why_not_writable(folder):
        raise ServiceError(f"cannot write to {folder}: {obstacle}; set REFINE_HOME to a folder that can be written to")


def sqlite_file(uri: str) -> Path:
    """The file that a sqlite:/// address names. SQLAlchemy takes the path as it is, up to a `?`."""
    return Path(uri.removeprefix(SQLITE_PREFIX).partition("?")[0])


@contextlib.contextmanager
def made_without_syncing(uri: str) -> Iterator[None]:
    """For the block, SQLite makes the file of `uri` without waiting for the disk after each table. Later changes wait
    again. Does nothing if the file exists, or if `uri` names another kind of database."""
    if not uri.startswith(SQLITE_PREFIX) or sqlite_file(uri).exists():
        yield
        return
    from sqlalchemy import Engine, event

    opened: list[Any] = []

    def stop_syncing(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")
        opened.append(connection)

    event.listen(Engine, "connect", stop_syncing)
    try:
        yield
    finally:
        event.remove(Engine, "connect", stop_syncing)
        for connection in opened:
            with contextlib.suppress(Exception):  # a connection may be closed
                connection.execute("PRAGMA synchronous = FULL")


def make_database(uri: str) -> None:
    """If `uri` is a SQLite file that does not exist: make it, with MLflow's tables, completely or not at all. MLflow
    cannot go on with a half-made one, which a kill or a full disk leaves."""
    if not uri.startswith(SQLITE_PREFIX) or (file := sqlite_file(uri)).exists():
        return
    beside = hidden(file, f"{uuid.uuid4().hex[:8]}.unfinished")  # MLflow keeps connections to each name it was given
    journal = beside.with_name(f"{beside.name}-journal")
    sweep(file.parent, f".{file.name}.*.unfinished-journal", only=file.name)
    made = f"{SQLITE_PREFIX}{beside}"
    try:
        with made_without_syncing(made):
            _mlflow().MlflowClient(tracking_uri=made, registry_uri=made).search_experiments(max_results=1)
        flush(beside)
        _put_in_place(beside, file)
    finally:
        for left in (beside, journal):
            left.unlink(missing_ok=True)


def _put_in_place(made: Path, file: Path) -> None:
    """Give `made` the name `file`, unless another process was first: a rename would replace that one's records."""
    try:
        os.link(made, file)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not file.exists():
            made.rename(file)


def experiment_id(client: MlflowClient, name: str) -> str:
    """The id of the experiment `name`, created if it does not exist. Two processes at once create one.

    Raises SettingError: the name is a path, or too long.
    """
    from mlflow.exceptions import MlflowException

    check_name(name, "an experiment")
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
    """Set `uri` for MLflow's functions that take no client. MLflow also writes it into the environment; undo that,
    or it would look like a server that the user named."""
    named = os.environ.get(VARIABLE)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    if named is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = named


def _mlflow() -> Any:
    reach_directly()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import logging

    for noisy in ("mlflow.store.db.utils", "mlflow.store.model_registry", "alembic", "mlflow.tracking"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    import mlflow

    served_artifacts.use()
    return mlflow


def authorization(credentials: str) -> str:
    """The header that MLflow's client sends. credentials: `user:password` of the address."""
    user, _, password = credentials.partition(":")
    user = os.environ.get("MLFLOW_TRACKING_USERNAME") or user
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or password
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return f"Bearer {token}"
    return basic(f"{user}:{password}") if user else ""


def _reason(error: Exception, uri: str) -> str:
    """The first line of an error, without the secrets of `uri`; drivers add many more lines."""
    cause = getattr(error, "reason", None) or error
    return reason(without_secrets(str(cause), uri).split("\n")[0] or type(error).__name__)


def _advice() -> str:
    if os.environ.get(VARIABLE):
        return f"; start it (`refine up`), correct {VARIABLE}, or unset it to record in $REFINE_HOME/mlflow.db"
    return "; check $REFINE_HOME"
