"""Services as a team runs them: both servers on a real PostgreSQL, models on an S3 endpoint, by settings alone."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from refine.errors import ServiceError
from refine.services.prefect_api import free_port

PASSWORD = 'p%40s:s/w"rd'  # characters with a meaning in URLs, shells and supervisord.conf


def _programs() -> Path | None:
    """The folder of PostgreSQL's programs. On Debian it is not on the PATH."""
    found = [Path(there).resolve().parent] if (there := shutil.which("initdb")) else []
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((one for one in found if all((one / name).exists() for name in ("initdb", "pg_ctl", "psql"))), None)


PROGRAMS = _programs()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAMS is None, reason="needs PostgreSQL's programs (Debian package postgresql)"),
]


def _owner() -> str:
    """The user that runs PostgreSQL: it refuses to run as root."""
    if os.getuid() != 0:
        return getpass.getuser()
    return next(name for name in ("postgres", "nobody") if name in {one.pw_name for one in pwd.getpwall()})


@pytest.fixture(scope="module")
def postgresql() -> Iterator[int]:
    """The port of a PostgreSQL with a user refine, who owns the databases prefect and mlflow."""
    assert PROGRAMS is not None
    folder, owner, port = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp")), _owner(), free_port()
    run = {"env": {**os.environ, "PGPASSWORD": "first"}, "cwd": folder, "check": True, "capture_output": True}
    if os.getuid() == 0:
        shutil.chown(folder, owner)
        run["user"] = owner
    (folder / "password").write_text("first")
    (folder / "password").chmod(0o644)
    data = folder / "data"
    create = [PROGRAMS / "initdb", "-D", data, "-A", "scram-sha-256", "-U", "first", f"--pwfile={folder / 'password'}"]
    subprocess.run([*create, "--no-sync"], **run)
    options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off"
    subprocess.run([PROGRAMS / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start"], **run)
    try:
        psql = [PROGRAMS / "psql", "-h", "127.0.0.1", "-p", str(port), "-U", "first", "-d", "postgres", "-c"]
        for statement in (
            f"CREATE USER refine PASSWORD '{PASSWORD}'",
            "CREATE DATABASE prefect OWNER refine",
            "CREATE DATABASE mlflow OWNER refine",
        ):
            subprocess.run([*psql, statement], **run)
        yield port
    finally:
        subprocess.run([PROGRAMS / "pg_ctl", "-D", data, "-m", "immediate", "stop"], **run)
        shutil.rmtree(folder)


@pytest.fixture
def bucket(monkeypatch) -> Iterator[str]:
    """An empty bucket on an S3 server on loopback."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="models")
    yield "models"
    server.stop()


def url(driver: str, port: int, database: str, password: str = PASSWORD) -> str:
    return f"postgresql+{driver}://refine:{quote(password, safe='')}@127.0.0.1:{port}/{database}"


def test_a_wrong_password_is_one_line_before_anything_starts(home, postgresql):
    from refine.services import server_databases

    for server, driver in (("prefect", "asyncpg"), ("mlflow", "pg8000")):
        server_databases.check(url(driver, postgresql, server), server)
        with pytest.raises(ServiceError, match="password authentication failed") as error:
            server_databases.check(url(driver, postgresql, server, "wrong-one"), server)
        assert "wrong-one" not in str(error.value) and "\n" not in str(error.value)
        with pytest.raises(ServiceError, match='"nowhere" does not exist'):
            server_databases.check(url(driver, postgresql, "nowhere"), server)


def test_runs_models_and_pools_are_kept_by_postgresql_and_s3(home, postgresql, bucket, monkeypatch):
    import boto3

    from refine.services import up
    from refine.tracking.connection import connect, experiment_id
    from refine.tracking.registry import fetch, register, version_of

    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "refine:open-sesame")
    monkeypatch.setattr(up, "PATIENCE", 600.0)  # tables are made on whatever machine tests run
    model = home / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights" * 99)
    wanted = up.UpOptions(
        free_port(), free_port(), prefect_database=url("asyncpg", postgresql, "prefect"),
        mlflow_database=url("pg8000", postgresql, "mlflow"), artifacts=f"s3://{bucket}/mlflow",
    )  # fmt: skip
    try:
        addresses = up.up(wanted)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{addresses['prefect_api']}/work_pools/gpu")
        lines = [" ".join(one.cmdline()) for one in psutil.Process(up.supervisor_pid()).children(True)]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", addresses["mlflow"])
        client = connect()
        run = client.create_run(experiment_id(client, "team")).info
        register(
            client, "team", model, key="1", run_id=run.run_id, experiment_id=run.experiment_id,
            metrics={"val/loss": 3.5}, settings={"steps": 3}, tags={"arm": "sft", "phase": "mid"},
        )  # fmt: skip
        version = version_of(client, "team", "1")
        fetched = fetch(client, version, home / "fetched")
    finally:
        up.down()
    assert version.metrics == {"val/loss": 3.5}
    assert (fetched / "model.safetensors").read_bytes() == b"weights" * 99
    stored = [one["Key"] for one in boto3.client("s3").list_objects_v2(Bucket=bucket)["Contents"]]
    assert any(key.startswith("mlflow/") and key.endswith("model.safetensors") for key in stored), stored
    assert rows(postgresql, "prefect", "SELECT name FROM work_pool") == [("gpu",)]
    assert rows(postgresql, "mlflow", "SELECT name FROM registered_models") == [("team",)]
    assert not [*home.glob("*.db"), *home.rglob("prefect.db")], "a server kept a SQLite database besides"
    assert not [line for line in lines if PASSWORD in line or quote(PASSWORD, safe="") in line]
    logs = "".join(file.read_text(errors="replace") for file in (home / "services").glob("*.log"))
    assert PASSWORD not in logs and quote(PASSWORD, safe="") not in logs


def rows(port: int, database: str, query: str) -> list[tuple]:
    import pg8000.dbapi

    with pg8000.dbapi.connect("refine", host="127.0.0.1", port=port, database=database, password=PASSWORD) as asked:
        cursor = asked.cursor()
        cursor.execute(query)
        return [tuple(row) for row in cursor.fetchall()]
