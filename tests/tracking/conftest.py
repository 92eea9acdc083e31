"""A home of its own for every test: MLflow's database and artifacts under tmp_path."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def blank_database(tmp_path_factory) -> Path:
    """An MLflow database with its tables made, to copy: making them takes a second and a half."""
    from refine.tracking.connection import connect

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{file}")
    return file


@pytest.fixture
def home(tmp_path, monkeypatch, blank_database) -> Path:
    """$REFINE_HOME in tmp_path, with an empty MLflow database."""
    monkeypatch.setenv("REFINE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(blank_database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def client(home):
    """A client of the home's MLflow."""
    from refine.tracking.connection import connect

    return connect()


@pytest.fixture
def experiment(client) -> str:
    """The id of an experiment."""
    from refine.tracking.connection import experiment_id

    return experiment_id(client, "sample")


@pytest.fixture
def model_folder(tmp_path) -> Path:
    """A folder that looks like a checkpoint."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "delta_net", "vocab_size": 300}))
    (folder / "model.safetensors").write_bytes(b"\0" * 64)
    return folder
