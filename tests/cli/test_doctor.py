"""`refine doctor` and its checks (refine/services/diagnosis.py): what is wrong, what to do, and the exit code."""

from __future__ import annotations

import importlib.metadata
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from refine.cli.main import cli
from refine.services import diagnosis
from refine.tracking.connection import connect, experiment_id
from refine.tracking.registry import register


@pytest.fixture
def doctor(tmp_path, monkeypatch, checkout):
    """Run `refine doctor` in a folder with the sample's settings and its own data."""
    from refine.data.corpus import version

    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "REFINE_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REFINE_HOME", str(tmp_path / "home"))
    shutil.copy(checkout / "params.yaml", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").write_text("text")
    (tmp_path / "data.dvc").write_text(f"outs:\n- md5: {version.of('data').md5}\n  path: data\n")

    def run() -> tuple[int, dict[str, str]]:
        result = CliRunner().invoke(cli, ["doctor"])
        lines = [line.split(None, 2) for line in result.output.splitlines() if line and not line.startswith(" ")]
        return result.exit_code, {line[1]: f"{line[0]} {line[2]}" for line in lines if len(line) == 3}

    return run


def test_a_complete_installation_is_checked_in_seconds(doctor):
    started = time.monotonic()
    code, found = doctor()
    assert code == 0, found
    assert time.monotonic() - started < 20
    assert {"python", "packages", "device", "kernels", "home", "settings", "data", "mlflow", "prefect"} <= set(found)
    assert "torch" in found["packages"] and "mlflow.db" in found["mlflow"]


def test_unsupported_versions_are_broken(doctor, monkeypatch):
    there = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1" if name == "prefect" else there(name))
    asked = ["prefect<4,>=3.6", "click>=8.1", "pg8000>=1.31; extra == 'team'", "nowhere>=1; extra == 'dev'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked)
    code, found = doctor()
    assert code == 1 and found["packages"] == "BROKEN unsupported versions: prefect 0.1 (expected <4,>=3.6)"


def test_altered_data_and_wrong_settings_are_broken(doctor, tmp_path):
    (tmp_path / "data" / "train.parquet").write_text("other text")
    (tmp_path / "params.yaml").write_text("sed: 1\n")
    code, found = doctor()
    assert code == 1
    assert found["data"].startswith("BROKEN") and found["settings"].startswith("BROKEN params.yaml:")


def test_configured_servers_that_do_not_answer_are_broken(doctor, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    code, found = doctor()
    assert code == 1 and found["mlflow"].startswith("BROKEN") and found["prefect"].startswith("BROKEN")
    assert "secret" not in str(found)


def test_missing_packages_an_unwritable_home_and_impossible_kernels_are_broken(doctor, monkeypatch):
    monkeypatch.setattr(diagnosis, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setenv("REFINE_HOME", "/proc/home")
    monkeypatch.setenv("REFINE_KERNELS", "cuda")
    code, found = doctor()
    assert code == 1 and "no-such-package" in found["packages"]
    assert found["home"].startswith("BROKEN") and found["kernels"].startswith("BROKEN REFINE_KERNELS is 'cuda'")


@pytest.fixture
def served(tmp_path, monkeypatch):
    """MLflow's client of a SQLite file, which the checks take for that of a server."""
    monkeypatch.setenv("REFINE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = connect()
    (tmp_path / "mlartifacts").mkdir()
    for name in ("check_answers", "connect"):
        monkeypatch.setattr(diagnosis, name, lambda *_, **__: client)
    monkeypatch.setattr(diagnosis, "tracking_uri", lambda: "http://server:5000")
    return client


def test_experiments_whose_models_stay_on_one_machine_are_named(tmp_path, served):
    served.create_experiment("served", artifact_location="mlflow-artifacts:/1")
    assert list(diagnosis._models()) == []
    served.create_experiment("sample", artifact_location=(tmp_path / "mlartifacts").as_uri())
    (found,) = diagnosis._models()
    assert found.status == "note" and found.found.endswith("can read: sample") and "`refine up`" in found.advice
    served.create_experiment("elsewhere", artifact_location=Path("/not/mounted/here").as_uri())
    (found,) = diagnosis._models()
    assert found.status == "broken" and found.found.endswith("can read: elsewhere, sample")


def test_one_file_of_the_newest_version_is_fetched_as_a_worker_does(served, tmp_path, model_folder):
    register(
        served, "sample", model_folder, key="k", run_id="", metrics={}, settings={}, tags={},
        experiment_id=served.create_experiment("served", artifact_location="mlflow-artifacts:/1"),
    )  # fmt: skip
    (found,) = diagnosis._models()
    assert found.status == "good" and "file of sample version 1 was fetched through the server" in found.found
    (stored,) = (tmp_path / "mlartifacts").rglob("config.json")
    stored.unlink()
    (found,) = diagnosis._models()
    assert found.status == "broken" and found.found.startswith("sample version 1 cannot be fetched: ")


def test_without_a_server_a_file_is_fetched_too(tmp_path, monkeypatch, model_folder):
    monkeypatch.setenv("REFINE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert list(diagnosis._models()) == [], "nothing is recorded yet"
    client = connect()
    register(
        client, "sample", model_folder, key="k", run_id="", metrics={}, settings={}, tags={},
        experiment_id=experiment_id(client, "sample"),
    )  # fmt: skip
    (found,) = diagnosis._models()
    assert found.status == "good" and found.found.endswith("fetched without a server")


def test_a_check_that_fails_is_a_finding_and_no_traceback(doctor, monkeypatch):
    def _broken_check():
        raise RuntimeError("the driver is gone")
        yield

    monkeypatch.setattr(diagnosis, "CHECKS", (_broken_check,))
    code, found = doctor()
    assert code == 1 and "RuntimeError: the driver is gone" in found["broken_check"]
