"""MLflow's server of `refine up` answers as `mlflow server` does, but has no assistant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from refine.services.prefect_api import free_port
from refine.tracking.in_progress import may_run
from tests.conftest import wait_for

ADDRESSES = ("config", "providers", "message")


def status(url: str, body: bytes | None = None) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def asked(address: str, question: str, **fields: str) -> bytes:
    about = urllib.request.Request(f"{address}/api/2.0/mlflow/{question}", json.dumps(fields).encode())
    about.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(about, timeout=10) as answer:
        return answer.read()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The server of a new database. Yields its address."""
    tmp_path = tmp_path_factory.mktemp("server")
    port = free_port()
    variables = {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "MLFLOW_ARTIFACTS_DESTINATION": (tmp_path / "mlartifacts").as_uri(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [sys.executable, "-m", "refine.services.mlflow_server", "127.0.0.1", str(port)]
    process = subprocess.Popen(command, env={**os.environ, **variables}, cwd=tmp_path, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        assert wait_for(lambda: status(f"{address}/health") == 200, 120)
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=30)


def test_the_assistant_is_not_there_and_all_else_is(server):
    for name in ADDRESSES:
        url = f"{server}/ajax-api/3.0/mlflow/assistant/{name}"
        assert {status(url), status(url, b"{}")} == {404}, name
    assert status(f"{server}/") == 200
    assert status(f"{server}/api/2.0/mlflow/experiments/get?experiment_id=0") == 200
    assert status(f"{server}/api/2.0/mlflow-artifacts/artifacts") == 200


def test_it_is_asked_without_its_client_whether_a_run_is_in_progress(server, bare_home):
    assert not may_run(server)
    run = json.loads(asked(server, "runs/create", experiment_id="0"))["run"]["info"]
    assert may_run(server)
    asked(server, "runs/update", run_id=run["run_id"], status="FINISHED")
    assert not may_run(server)


def test_mlflow_still_has_the_addresses_that_are_taken_away():
    """Were they called otherwise, they would answer. In a new process: MLflow's application reads the environment."""
    code = (
        "import sys\n"
        "from starlette.testclient import TestClient\n"
        "from mlflow.server.fastapi_app import app\n"
        "from refine.services.mlflow_server import without_assistant\n"
        "for one in (app, without_assistant(app)):\n"
        "    client = TestClient(one, base_url='http://localhost', client=('127.0.0.1', 50000))\n"
        "    print(*(client.get(f'/ajax-api/3.0/mlflow/assistant/{name}').status_code for name in sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *ADDRESSES[:2]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["200 200", "404 404"]
