"""Reads and writes `mlflow-artifacts:/...`, the addresses of what an MLflow server keeps, while no server runs.

MLflow itself reads them through a server only. Where records go to the server's SQLite file, this module opens the
store that the server serves: mlartifacts/ beside that file, or what the file `mlflow.db.artifacts` names. MLflow finds
`repository` by the entry point in pyproject.toml.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from refine.system.addresses import local_path
from refine.system.files import write_text

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

SCHEME = "mlflow-artifacts"
SQLITE_PREFIX = "sqlite:///"


def default_store(database: Path) -> str:
    """The address of the store that belongs to an MLflow database unless `refine up --artifacts` names another."""
    return (database.parent / "mlartifacts").as_uri()


def store_of(database: Path) -> str:
    """The address of the store in which the server of an MLflow database keeps models and files."""
    record = _record(database)
    return record.read_text(encoding="utf-8").strip() if record.is_file() else default_store(database)


def keep_store(database: Path, store: str) -> None:
    """Record the store of `database`, for the time when its server does not run, and make it if it is a folder."""
    if (folder := local_path(store)) is not None:
        folder.mkdir(parents=True, exist_ok=True)
    if store == default_store(database):
        _record(database).unlink(missing_ok=True)
    else:
        write_text(_record(database), f"{store}\n")


def _record(database: Path) -> Path:
    return database.with_name(f"{database.name}.artifacts")


def repository(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> ArtifactRepository:
    """What MLflow opens for an `mlflow-artifacts:` address: the store itself if records go to a SQLite file, else the
    server."""
    from mlflow import get_tracking_uri
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    records = tracking_uri or get_tracking_uri()
    place = _without_server(artifact_uri, records)
    if place is None:
        return MlflowArtifactsRepository(artifact_uri, records, registry_uri)
    return get_artifact_repository(place, records, registry_uri)


def _without_server(artifact_uri: str, records: str) -> str | None:
    """The address in the store of what `artifact_uri` names. None if only a server can read it."""
    from mlflow.utils.uri import append_to_uri_path, validate_path_is_safe

    named = urlsplit(artifact_uri)
    if not records.startswith(SQLITE_PREFIX) or named.netloc:
        return None
    store = store_of(Path(records.removeprefix(SQLITE_PREFIX).partition("?")[0]).absolute())
    folder = local_path(store)
    if folder is not None and not folder.is_dir():
        return None
    inside = named.path.strip("/")
    return append_to_uri_path(store, validate_path_is_safe(inside)) if inside else store


def use() -> None:
    """Let this process read such addresses without a server, also where the package was installed before it had the
    entry point."""
    from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories

    get_registered_artifact_repositories()[SCHEME] = repository  # type: ignore[assignment]
