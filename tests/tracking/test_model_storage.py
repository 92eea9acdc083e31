"""Models on S3: complete or absent, also when the store does not answer for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from refine.errors import ServiceError
from refine.system import retries
from refine.tracking import model_storage
from refine.tracking.registry import download, fetch, register, versions


class Store:
    """An S3 server on loopback with the bucket `models`, which can be stopped and started with its contents."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def stop(self) -> None:
        self.server.stop()

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()
        self.port = self.server.get_host_and_port()[1]


@pytest.fixture
def s3(monkeypatch) -> Iterator[Store]:
    import boto3

    made = Store()
    for name, value in {
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{made.port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{made.port}").create_bucket(Bucket="models")
    yield made
    made.stop()


@pytest.fixture
def add(client, s3, model_folder):
    """Register the model folder in an experiment whose artifacts are on S3."""
    experiment = client.create_experiment("on-s3", artifact_location="s3://models/mlflow")

    def add():
        run = client.create_run(experiment).info.run_id
        return register(
            client,
            "m",
            model_folder,
            key=run,
            run_id=run,
            experiment_id=experiment,
            metrics={"val/loss": 3.5},
            settings={},
            tags={"arm": "sft"},
        )

    return add


def later(action, seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def test_a_store_that_does_not_answer_for_a_while_is_waited_for(client, s3, add, model_folder, tmp_path):
    s3.stop()
    back = later(s3.start, 1.5)
    version = add()
    back.join()
    s3.stop()
    back = later(s3.start, 1.5)
    fetched = fetch(client, version, tmp_path / "fetched")
    back.join()
    assert {file.name: (fetched / file.name).read_bytes() for file in model_folder.iterdir()} == {
        file.name: file.read_bytes() for file in model_folder.iterdir()
    }


def test_a_store_that_never_answers_is_an_error_of_one_line_and_nothing_is_registered(client, s3, add, monkeypatch):
    monkeypatch.setattr(retries, "PATIENCE", 1.0)
    s3.stop()
    with pytest.raises(ServiceError, match=r"storing the model in .*: failed, tried for 1 s .*run again") as error:
        add()
    s3.start()
    assert "\n" not in str(error.value) and versions(client, "m") == []
    experiment = client.get_experiment_by_name("on-s3").experiment_id
    assert [one.status.value for one in client.search_logged_models([experiment])] == ["FAILED"]
    assert add().number == 1


def test_an_incomplete_download_leaves_no_folder(client, s3, add, tmp_path, monkeypatch):
    version = add()
    monkeypatch.setattr(retries, "PATIENCE", 1.0)
    s3.stop()
    with pytest.raises(ServiceError, match=r"fetching models:/m/1: failed, tried for 1 s"):
        fetch(client, version, tmp_path / "fetched")
    s3.start()
    assert not (tmp_path / "fetched").exists() and not list(tmp_path.glob(".fetched*"))


def test_an_error_that_no_retry_mends_is_raised_at_once(client, s3, model_folder):
    experiment = client.create_experiment("nowhere", artifact_location="s3://no-such-bucket/mlflow")
    run = client.create_run(experiment).info.run_id
    started = time.monotonic()
    with pytest.raises(ServiceError, match=r"storing the model in .*: failed \(.*NoSuchBucket"):
        model_storage.store(client, model_folder, experiment_id=experiment, name="m", run_id=run, tags={})
    assert time.monotonic() - started < retries.PATIENCE / 2


def test_a_model_that_only_a_server_can_read_is_an_error_at_once(client, model_folder, tmp_path):
    experiment = client.create_experiment("served", artifact_location="mlflow-artifacts:/1")
    made = client.create_logged_model(experiment, name="m")
    version = client.create_registered_model("m") and client.create_model_version("m", f"models:/{made.model_id}")
    started = time.monotonic()
    with pytest.raises(ServiceError, match=r"fetching models:/m/1: an MLflow server keeps the model.*refine up"):
        download(client, f"models:/m/{version.version}", tmp_path)
    assert time.monotonic() - started < retries.PATIENCE / 2
