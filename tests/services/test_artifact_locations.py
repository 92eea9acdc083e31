"""`refine up` gives experiments that were made without a server locations that its server serves, all or none; commands
without a server still find the files."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from refine.errors import ServiceError
from refine.services import artifact_locations, up
from refine.services.artifact_locations import ADDRESSES, use_store
from refine.tracking.connection import connect, experiment_id
from refine.tracking.registered_folders import folder_of
from refine.tracking.registry import register
from refine.tracking.served_artifacts import default_store, store_of


@pytest.fixture
def home(tmp_path, monkeypatch, blank_database) -> Path:
    """$REFINE_HOME with a character that addresses escape, and an empty MLflow database."""
    place = tmp_path / "my home"
    place.mkdir()
    monkeypatch.setenv("REFINE_HOME", str(place))
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(blank_database, place / "mlflow.db")
    return place


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "delta_net", "vocab_size": 300}))
    (folder / "model.safetensors").write_bytes(b"\0" * 64)
    return folder


def made_without_a_server(model: Path, experiment: str = "sample", location: str | None = None) -> tuple[str, str]:
    """Register `model` in an experiment and give its run a file. Returns the ids of experiment and run."""
    client = connect()
    into = client.create_experiment(experiment, location) if location else experiment_id(client, experiment)
    run = client.create_run(into).info.run_id
    client.log_artifact(run, str(model / "config.json"), "results")
    register(
        client, f"model-of-{experiment}", model, key=experiment, run_id=run, experiment_id=into, metrics={},
        settings={}, tags={},
    )  # fmt: skip
    return into, run


def addresses(home: Path) -> set[str]:
    """All addresses of files in the database, but those of MLflow's own experiment."""
    with sqlite3.connect(home / "mlflow.db") as database:
        rows = [database.execute(f"SELECT {column} FROM {table}").fetchall() for table, column in ADDRESSES]
    return {address for each in rows for (address,) in each if address and not address.startswith("models:")}


def moved(home: Path, store: str | None = None) -> list[str]:
    said: list[str] = []
    use_store(home / "mlflow.db", store or default_store(home / "mlflow.db"), said.append)
    return said


def test_every_address_becomes_one_that_the_server_serves_and_nothing_is_lost_without_it(home, model):
    _, run = made_without_a_server(model)
    assert any(one.startswith("file:") for one in addresses(home))
    assert moved(home) == ["other machines can now fetch the models of sample, which were made without a server"]
    assert {one.partition(":")[0] for one in addresses(home)} == {"mlflow-artifacts"}
    assert f"mlflow-artifacts:/{run}/artifacts" in addresses(home)
    assert not list(home.glob("mlflow.db.*")), "no copy, and no record of the usual store"
    client = connect()
    assert (
        Path(client.download_artifacts(run, "results/config.json")).read_text() == (model / "config.json").read_text()
    )
    assert (folder_of("models:/model-of-sample/1") / "model.safetensors").read_bytes() == b"\0" * 64
    client.log_artifact(run, str(model / "config.json"), "later")
    assert (home / "mlartifacts" / run / "artifacts" / "later" / "config.json").is_file()
    before = addresses(home)
    assert moved(home) == [] and addresses(home) == before, "a second start changes nothing"


def test_an_experiment_that_goes_on_without_a_server_writes_where_the_server_looks(home, model):
    into, _ = made_without_a_server(model)
    moved(home)
    client = connect()
    assert experiment_id(client, "sample") == into
    run = client.create_run(into).info.run_id
    client.log_artifact(run, str(model / "config.json"))
    assert (home / "mlartifacts" / run / "artifacts" / "config.json").is_file()


def test_a_failure_in_between_changes_nothing_and_leaves_a_copy(home, model, monkeypatch):
    made_without_a_server(model)
    before = addresses(home)
    real = artifact_locations._changes
    extra = ("runs", "no_such_column", "a", "b")
    monkeypatch.setattr(artifact_locations, "_changes", lambda *given: [*real(*given), extra])
    with pytest.raises(ServiceError, match=r"mlflow\.db cannot be used: no such column"):
        moved(home)
    assert addresses(home) == before
    with sqlite3.connect(home / "mlflow.db.before-up") as copy:
        assert copy.execute("SELECT count(*) FROM experiments WHERE name = 'sample'").fetchone() == (1,)


def test_a_database_that_another_command_keeps_locked_is_one_line(home, model, monkeypatch):
    made_without_a_server(model)
    monkeypatch.setattr(artifact_locations, "PATIENCE", 0.1)
    with sqlite3.connect(home / "mlflow.db") as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ServiceError, match="database is locked; check that no other command") as error:
            moved(home)
    assert "\n" not in str(error.value)


def test_files_elsewhere_are_refused_until_they_are_where_the_server_looks(home, model, tmp_path):
    other = tmp_path / "other"
    made_without_a_server(model, "elsewhere", other.as_uri())
    before = addresses(home)
    with pytest.raises(ServiceError, match=r"files of elsewhere are in .*/other, and .*--artifacts.*copy") as error:
        moved(home)
    assert "\n" not in str(error.value) and addresses(home) == before
    shutil.copytree(other, home / "mlartifacts", dirs_exist_ok=True)
    assert "elsewhere" in moved(home)[0]
    shutil.rmtree(other)
    assert (folder_of("models:/model-of-elsewhere/1") / "config.json").is_file()


def test_a_home_that_was_moved_is_found_again(home, model, tmp_path, monkeypatch):
    made_without_a_server(model)
    new = tmp_path / "new home"
    home.rename(new)
    monkeypatch.setenv("REFINE_HOME", str(new))
    assert "sample" in moved(new)[0]
    assert (folder_of("models:/model-of-sample/1") / "config.json").is_file()


def test_models_that_are_gone_are_said_and_stay(home, model, tmp_path):
    other = tmp_path / "other"
    made_without_a_server(model, "elsewhere", other.as_uri())
    shutil.rmtree(other)
    before = addresses(home)
    (line,) = moved(home)
    assert line.startswith("the models of elsewhere are no longer in ")
    assert {one for one in before if "other" in one} <= addresses(home)


def test_another_store_is_recorded_and_refused_while_it_lacks_the_models(home, model, tmp_path):
    made_without_a_server(model)
    moved(home)
    store = (tmp_path / "big disk").as_uri()
    with pytest.raises(ServiceError, match=r"files of sample are in /.*/mlartifacts, and .*/big disk: "):
        moved(home, store)
    assert store_of(home / "mlflow.db") == default_store(home / "mlflow.db")
    (home / "mlartifacts").rename(tmp_path / "big disk")
    assert moved(home, store) == [] and store_of(home / "mlflow.db") == store
    assert (folder_of("models:/model-of-sample/1") / "config.json").is_file(), "found without a server, too"


def test_a_folder_whose_name_begins_with_a_dot_keeps_it(home, model):
    made_without_a_server(model, "hidden", (home / "mlartifacts" / ".mine").as_uri())
    moved(home)
    assert "mlflow-artifacts:/.mine" in addresses(home)
    assert (folder_of("models:/model-of-hidden/1") / "config.json").is_file()


def test_a_database_without_mlflows_tables_is_left_to_mlflow(home):
    (home / "mlflow.db").unlink()
    sqlite3.connect(home / "mlflow.db").close()
    assert moved(home) == []


def test_a_missing_database_is_made_whole_before_a_server_starts(home, monkeypatch):
    (home / "mlflow.db").unlink()
    made: list[str] = []
    monkeypatch.setattr(up, "make_database", made.append)
    monkeypatch.setattr(artifact_locations, "use_store", lambda *given: None)
    up._prepare_mlflow(up.UpOptions(), print)
    up._prepare_mlflow(up.UpOptions(mlflow_database="postgresql+pg8000://db/mlflow"), print)
    assert made == [f"sqlite:///{home}/mlflow.db"]


@pytest.mark.slow
def test_models_made_without_a_server_come_from_the_server_of_refine_up(home, model):
    from refine.services.prefect_api import free_port

    made_without_a_server(model)
    try:
        said: list[str] = []
        served = up.up(up.UpOptions(free_port(), free_port()), said.append)
        assert "fetch the models of sample" in said[0]
        client = connect(served["mlflow"])
        version = client.get_model_version("model-of-sample", "1")
        assert client.get_model_version_download_uri("model-of-sample", "1").startswith("mlflow-artifacts:/models/")
        assert (folder_of(f"models:/model-of-sample/{version.version}") / "config.json").is_file()
    finally:
        up.down()
