"""`mlflow-artifacts:` addresses without a server: which store they mean, and when only a server can read them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

from refine.tracking import served_artifacts
from refine.tracking.served_artifacts import default_store, keep_store, repository, store_of


@pytest.fixture
def database(tmp_path) -> Path:
    folder = tmp_path / "mlartifacts" / "run" / "artifacts"
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text("{}")
    return tmp_path / "mlflow.db"


def test_the_folder_beside_the_database_is_read(database):
    found = repository("mlflow-artifacts:/run/artifacts", f"sqlite:///{database}")
    assert [one.path for one in found.list_artifacts()] == ["scores.json"]
    assert [one.path for one in repository("mlflow-artifacts:/", f"sqlite:///{database}").list_artifacts()] == ["run"]


def test_a_recorded_store_goes_first_and_the_usual_one_needs_no_record(database, tmp_path):
    other = tmp_path / "a disk"
    keep_store(database, other.as_uri())
    assert other.is_dir()
    assert store_of(database) == other.as_uri()
    assert repository("mlflow-artifacts:/run/artifacts", f"sqlite:///{database}").list_artifacts() == []
    keep_store(database, default_store(database))
    assert store_of(database) == default_store(database) and not list(tmp_path.glob("mlflow.db.*"))


@pytest.mark.parametrize(
    ("address", "records"),
    [
        ("mlflow-artifacts:/run/artifacts", "http://127.0.0.1:9"),
        ("mlflow-artifacts://host:5000/run/artifacts", "http://127.0.0.1:9"),
    ],
)
def test_with_a_server_it_is_asked(address, records, database):
    assert isinstance(repository(address, records), MlflowArtifactsRepository)


def test_without_the_store_only_a_server_can_read_them(tmp_path):
    with pytest.raises(MlflowException, match="tracking URI"):
        repository("mlflow-artifacts:/run/artifacts", f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_no_address_leaves_the_store(database):
    with pytest.raises(MlflowException):
        repository("mlflow-artifacts:/../secret", f"sqlite:///{database}")


def test_mlflow_finds_it_by_the_entry_point(checkout):
    text = (checkout / "pyproject.toml").read_text(encoding="utf-8")
    (value,) = tomllib.loads(text)["project"]["entry-points"]["mlflow.artifact_repository"].values()
    module, _, name = value.partition(":")
    assert module == served_artifacts.__name__ and getattr(served_artifacts, name) is repository
