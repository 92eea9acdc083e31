"""A database that a server cannot use is one line, without its password, before the server starts."""

from __future__ import annotations

import importlib.util
import socket

import pytest

from refine.data import parquet
from refine.errors import ServiceError, SettingError
from refine.services import server_databases


@pytest.mark.parametrize(
    ("url", "server", "error", "message"),
    [
        ("no address", "prefect", SettingError, r"expected postgresql\+asyncpg://USER:PASSWORD@HOST:PORT/DATABASE"),
        ("postgresql+pg8000://me:secret@db/x", "prefect", SettingError, r"begins with postgresql\+asyncpg"),
        ("postgresql+asyncpg://me:secret@db/x", "mlflow", SettingError, r"begins with postgresql\+pg8000"),
        ("mysql://me:secret@db/x", "mlflow", SettingError, "begins with"),
        ("postgresql+asyncpg://me:secret@127.0.0.1:9/x", "prefect", ServiceError, "127.0.0.1:9/x cannot be used: "),
    ],
)
def test_an_unusable_database_is_one_line_that_names_the_option(url, server, error, message):
    with pytest.raises(error, match=message) as found:
        server_databases.check(url, server)
    message = str(found.value)
    assert f"--{server}-database" in message and "secret" not in message and "\n" not in message


def test_a_missing_driver_says_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "pg8000" else found(name, *more)
    )
    with pytest.raises(SettingError, match=r"pg8000 is not installed; pip install -e '\.\[team\]'"):
        server_databases.check("postgresql+pg8000://me:secret@127.0.0.1:9/x", "mlflow")


def test_sqlite_needs_no_asking(tmp_path):
    server_databases.check(f"sqlite:///{tmp_path}/mlflow.db", "mlflow")


def test_an_artifact_store_that_does_not_answer_is_reported_within_15_seconds(monkeypatch):
    """The slowest failure is a server that accepts the connection and sends nothing."""
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "hush"}.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ServiceError, match="--artifacts s3://models/mlflow: the server does not answer") as error:
            server_databases.check_artifacts("s3://models/mlflow")
        silent.setblocking(False)
        silent.accept()
        with pytest.raises(BlockingIOError):  # only one request: its limits bound the wait
            silent.accept()
    assert parquet.CONNECT + parquet.ANSWER < 15
    assert "hush" not in str(error.value)
    server_databases.check_artifacts("/a/folder")
