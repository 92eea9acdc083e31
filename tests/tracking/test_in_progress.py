"""Whether a run may be in progress is known without MLflow's client (of a server: services/test_mlflow_server.py)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from refine.errors import SettingError
from refine.tracking import outbox
from refine.tracking.connection import connect, experiment_id, tracking_uri
from refine.tracking.in_progress import may_run


def test_a_file_is_asked_and_not_made(bare_home):
    assert not may_run(tracking_uri()) and not (bare_home / "mlflow.db").exists()
    client = connect()
    run = client.create_run(experiment_id(client, "sample")).info.run_id
    assert may_run(tracking_uri())
    client.set_terminated(run)
    assert not may_run(tracking_uri())
    outbox.keep(run, status="KILLED")
    assert may_run(tracking_uri()), "a record waits: only the client delivers it"


def test_what_cannot_be_asked_is_left_to_the_client(bare_home):
    (bare_home / "mlflow.db").write_bytes(b"no database")
    for uri in (tracking_uri(), "http://127.0.0.1:9", "postgresql://server/runs"):
        assert may_run(uri), uri
    with pytest.raises(SettingError, match="MLFLOW_TRACKING_URI"):
        may_run("http://no address")


def test_status_without_runs_does_not_import_mlflow(bare_home):
    run = "from refine.cli.main import cli; cli(['status'], standalone_mode=False)"
    code = f"import sys; {run}; print('mlflow' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.splitlines()[-2:] == ["no run is in progress", "False"]
