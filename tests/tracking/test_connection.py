"""An MLflow that cannot be used is an error of one clear line, within seconds, before any work."""

from __future__ import annotations

import http.server
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from refine.errors import ServiceError
from refine.system.local_services import configuration_file, state_file
from refine.system.quiet import MLFLOW_BARS, no_download_bars
from refine.tracking import connection
from refine.tracking.connection import (
    artifact_root,
    connect,
    experiment_id,
    made_without_syncing,
    sqlite_file,
    tracking_uri,
)
from tests.conftest import wait_for


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def answering():
    """A function that starts a server on loopback, which answers every request with one status; returns its address."""
    servers = []

    def start(status: int) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()

            def log_message(self, *arguments):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_records_go_to_sqlite_under_home_unless_a_server_is_named(home, client, monkeypatch):
    assert tracking_uri() == f"sqlite:///{home}/mlflow.db"
    experiment = client.get_experiment(experiment_id(client, "sample"))
    assert experiment.artifact_location.startswith(f"file://{home}/mlartifacts")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking_uri() == "http://127.0.0.1:1"


def test_records_go_to_the_server_that_refine_up_keeps_running(home, free_port, monkeypatch):
    """Also while that server does not answer: nothing goes to a local file. Once the supervisor has died, the server
    does not count."""
    url = f"http://127.0.0.1:{free_port}"
    state_file().parent.mkdir()
    state_file().write_text(json.dumps({"mlflow": url}))
    keeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", str(configuration_file())])
    try:
        (home / "services" / "supervisord.pid").write_text(str(keeper.pid))
        assert tracking_uri() == url and artifact_root() is None
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
        assert tracking_uri() == "sqlite:///other.db"
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
    finally:
        keeper.kill()
        keeper.wait()
    assert tracking_uri() == f"sqlite:///{home}/mlflow.db" and artifact_root() is not None


def test_a_server_that_does_not_answer_is_an_error_of_one_line_within_seconds(monkeypatch, free_port):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:secret@127.0.0.1:{free_port}")
    started = time.monotonic()
    with pytest.raises(ServiceError) as error:
        connect()
    assert time.monotonic() - started < 6
    message = str(error.value)
    assert f"http://127.0.0.1:{free_port} does not answer" in message and "MLFLOW_TRACKING_URI" in message
    assert "secret" not in message and "\n" not in message


def test_a_server_that_accepts_and_never_answers_is_an_error_within_seconds():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        started = time.monotonic()
        with pytest.raises(ServiceError, match=r"does not answer"):
            connect(f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert time.monotonic() - started < 8


def test_an_error_of_a_refusal_names_the_credentials(answering):
    with pytest.raises(ServiceError, match=r"refuses access .* MLFLOW_TRACKING_USERNAME"):
        connect(answering(401))
    with pytest.raises(ServiceError, match=r"fails \(503\)"):
        connect(answering(503))


def test_a_home_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REFINE_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ServiceError, match=r"cannot write to .*file.home: .*REFINE_HOME"):
        connect()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_home_without_permission_is_named(tmp_path, monkeypatch):
    tmp_path.chmod(0o500)
    monkeypatch.setenv("REFINE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ServiceError, match=r"Permission denied"):
        connect()


def test_a_file_that_is_no_database_is_an_error_of_one_line(tmp_path):
    (tmp_path / "mlflow.db").write_text("these are my notes, not a database, " * 100)
    with pytest.raises(ServiceError, match=r"cannot be used") as error:
        connect(f"sqlite:///{tmp_path}/mlflow.db")
    assert "\n" not in str(error.value)


def test_an_experiment_is_made_once_and_a_deleted_one_comes_back(client):
    first = experiment_id(client, "sample")
    assert experiment_id(client, "sample") == first
    client.delete_experiment(first)
    assert experiment_id(client, "sample") == first
    assert client.get_experiment(first).lifecycle_stage == "active"


def test_our_downloads_show_no_progress_bars_and_the_user_s_do(client, experiment, tmp_path, capfd, monkeypatch):
    run = client.create_run(experiment).info.run_id
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "table.md").write_text("scores")
    client.log_artifacts(run, str(tmp_path / "scores"), "scores")
    with no_download_bars():
        client.download_artifacts(run, "scores", str(tmp_path))
    assert capfd.readouterr().err == ""
    client.download_artifacts(run, "scores", str(tmp_path))
    assert "Downloading artifacts" in capfd.readouterr().err
    monkeypatch.setenv(MLFLOW_BARS, "true")
    with no_download_bars():
        client.download_artifacts(run, "scores", str(tmp_path))
    assert "Downloading artifacts" in capfd.readouterr().err


OFF, FULL = 0, 2  # of SQLite's synchronous


def synchronous(engine) -> int:
    with engine.connect() as connection:
        return connection.execute(text("PRAGMA synchronous")).scalar()


def test_only_a_new_database_is_made_without_waiting_for_the_disk(tmp_path):
    uri = f"sqlite:///{tmp_path}/of%20runs.db"
    assert sqlite_file(uri) == tmp_path / "of%20runs.db", "SQLAlchemy does not decode the path"
    with made_without_syncing(f"sqlite:///{sqlite_file(uri)}"):
        engine = create_engine(f"sqlite:///{sqlite_file(uri)}")
        assert synchronous(engine) == OFF
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE runs (id INTEGER)"))
    assert synchronous(engine) == FULL, "the connection that made the file stays in use"
    assert synchronous(create_engine(engine.url)) == FULL, "later connections wait for the disk"
    with made_without_syncing(uri):
        assert synchronous(create_engine(engine.url)) == FULL, "the file exists"


MAKES_IT = "from refine.tracking.connection import connect; connect()"


def test_a_database_that_was_being_made_in_a_killed_process_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("REFINE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    process = subprocess.Popen([sys.executable, "-c", MAKES_IT])
    assert wait_for(lambda: any(one.stat().st_size for one in tmp_path.glob(".mlflow.db.*.unfinished")), 60)
    process.kill()
    process.wait()
    assert not (tmp_path / "mlflow.db").exists() and list(tmp_path.iterdir())
    assert experiment_id(connect(), "sample")
    assert [one.name for one in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_full_disk_leaves_no_half_made_database(tmp_path, monkeypatch):
    monkeypatch.setenv("REFINE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))  # no file may be larger: MLflow's is
        with pytest.raises(ServiceError, match=r"mlflow\.db cannot be used: .*check \$REFINE_HOME"):
            connect()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []
    assert experiment_id(connect(), "sample")


def test_the_database_of_another_process_is_not_replaced(tmp_path):
    (tmp_path / "made").write_text("mine")
    (tmp_path / "mlflow.db").write_text("another's")
    connection._put_in_place(tmp_path / "made", tmp_path / "mlflow.db")
    assert (tmp_path / "mlflow.db").read_text() == "another's"


def test_other_databases_are_left_alone():
    with made_without_syncing("postgresql+pg8000://me@db/mlflow"):
        assert synchronous(create_engine("sqlite://")) == FULL


@pytest.mark.parametrize("name", ["my home [1] 100% #x ü", "a%41b", 'it\'s "x"'])
def test_records_of_a_home_with_special_characters_are_in_that_home(name, tmp_path, monkeypatch):
    home = tmp_path / name
    home.mkdir()
    monkeypatch.setenv("REFINE_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = connect()
    run = client.create_run(experiment_id(client, "strange"))
    (tmp_path / "note.txt").write_text("kept")
    client.log_artifact(run.info.run_id, str(tmp_path / "note.txt"))
    assert Path(client.download_artifacts(run.info.run_id, "note.txt")).read_text() == "kept"
    assert (home / "mlflow.db").stat().st_size and list((home / "mlartifacts").rglob("note.txt"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "note.txt"])
