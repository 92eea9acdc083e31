"""`refine status` lists the services and the runs in progress; `refine down` says when there is nothing to stop."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from refine.cli import services
from refine.cli.main import cli
from refine.cli.status import DIED
from refine.services import up
from refine.services.flow_runs import FlowRun
from refine.system.local_services import state_file


def test_without_services_status_and_down_say_so(bare_home):
    status = CliRunner().invoke(cli, ["status"])
    assert status.exit_code == 0 and "do not run" in status.output and "no run is in progress" in status.output
    assert CliRunner().invoke(cli, ["down"]).output == "nothing runs\n"


def test_programs_have_a_line_each_and_so_have_runs_in_progress(bare_home, monkeypatch):
    from refine.tracking.connection import connect, experiment_id
    from refine.tracking.run import open_run

    state_file().parent.mkdir()
    state_file().write_text('{"mlflow": "http://127.0.0.1:5000", "pool": "gpu"}')
    programs = [up.Program("mlflow", "RUNNING", 12, 61.0), up.Program("worker", "FATAL", 0, 0.0)]
    monkeypatch.setattr(up, "programs", lambda: programs)
    client = connect()
    with open_run(client, experiment_id(client, "sample"), "mid refine") as run:
        lines = CliRunner().invoke(cli, ["status"]).output.splitlines()
    assert lines[0].split() == ["mlflow", "RUNNING", "12", "for", "0:01:01", "http://127.0.0.1:5000"]
    assert lines[1].split() == ["worker", "FATAL", "pool", "gpu"]
    assert lines[-1].strip() == f"sample: mid refine  (MLflow {run.run_id})"


@pytest.mark.parametrize(
    ("terminal", "options", "answer", "stops"),
    [(True, [], "n\n", False), (True, [], "y\n", True), (True, ["--yes"], "", True), (False, [], "", True)],
)
def test_down_names_the_runs_that_end_and_asks_at_a_terminal(bare_home, monkeypatch, terminal, options, answer, stops):
    runs = [FlowRun("1", "experiment of today", "Running", True), FlowRun("2", "by hand", "Running", False)]
    stopped: list[bool] = []
    monkeypatch.setattr(up, "flow_runs_in_progress", lambda: runs)
    monkeypatch.setattr(up, "down", lambda say: not stopped.append(True))
    monkeypatch.setattr(services, "at_terminal", lambda: terminal)
    done = CliRunner().invoke(cli, ["down", *options], input=answer)
    assert done.output.startswith("experiment of today (Running): ends\nby hand (Running): loses its server\n")
    assert bool(stopped) is stops and ("stopped\n" in done.output) is stops
    assert ("stop the services?" in done.output) is (terminal and not options)
    assert stops or str(done.exception) == "nothing was stopped"


def test_services_that_have_died_are_told(bare_home):
    state_file().parent.mkdir()
    state_file().write_text('{"mlflow": "http://127.0.0.1:9", "mlflow_database": "postgresql"}')
    assert CliRunner().invoke(cli, ["status"]).output == f"{DIED}\n"
    assert not (bare_home / "mlflow.db").exists(), "it asked a database that has no record of the runs"
    state_file().write_text('{"mlflow": "http://127.0.0.1:9"}')
    assert CliRunner().invoke(cli, ["status"]).output.splitlines() == [DIED, "", "no run is in progress"]
