"""Registered models as folders under $REFINE_HOME/runs/registered: how ``models:/NAME@ALIAS`` is a model wherever one
is named. A version is copied once; a reference with an alias or `latest` is looked up each time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from refine import paths
from refine.identity import hash_of
from refine.tracking.connection import connect
from refine.tracking.references import is_reference, parse_reference
from refine.tracking.registry import Version, fetch, version_of

if TYPE_CHECKING:
    from mlflow import MlflowClient


def folder_of(reference: str) -> Path:
    """The folder of a registered model, copied if it is not there yet. `refine.paths.model` calls it.

    Raises ServiceError: malformed, no such model, version or alias, or MLflow or its store does not answer.
    """
    name, wanted = parse_reference(reference)  # refuses a malformed one before MLflow is imported
    client = connect()
    return version_folder(client, version_of(client, name, wanted))


def version_folder(client: MlflowClient, version: Version) -> Path:
    """The folder with the model of `version`; raises as `folder_of`."""
    source = client.get_model_version(version.name, str(version.number)).source
    # The source tells versions of the same name and number on other servers apart.
    folder = paths.runs() / "registered" / f"{version.name}-{version.number}-{hash_of(source)[:8]}"
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        fetch(client, version, folder)
    return folder


def local(model: str) -> str:
    """The folder of a registered model; any other name as it is."""
    return str(folder_of(model)) if is_reference(model) else model


def pinned(model: str) -> str:
    """A reference by version number: what it names now, whatever its alias names later. Another name as it is."""
    if not is_reference(model):
        return model
    name, wanted = parse_reference(model)
    return f"models:/{name}/{version_of(connect(), name, wanted).number}"
