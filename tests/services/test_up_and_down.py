"""One `refine up` starts at a time, each ends only what it started, and `refine down` leaves no run RUNNING."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from refine.errors import ServiceError, SettingError
from refine.services import last_records, up
from refine.services.prefect_api import answers, free_port
from refine.system.leftovers import mark
from refine.system.local_services import services_folder, state_file
from refine.system.locks import try_hold
from tests.conftest import wait_for

OPENS_A_RUN = """
import sys, time
from refine.tracking.connection import connect, experiment_id
from refine.tracking.run import open_run
client = connect(sys.argv[1] if len(sys.argv) > 1 else None)
with open_run(client, experiment_id(client, "sample"), "mid refine") as run:
    print(run.run_id, flush=True)
    time.sleep(600)
"""


def run_of_a_killed_process(uri: str | None = None) -> str:
    """The id of a run in MLflow whose process was killed."""
    command = [sys.executable, "-c", OPENS_A_RUN, *([uri] if uri else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    run_id = process.stdout.readline().strip()
    process.kill()
    process.wait()
    return run_id


def status_of(run_id: str) -> str:
    from refine.tracking.connection import connect

    return connect().get_run(run_id).info.status


def test_while_one_starts_another_says_so_and_ends_nothing(home, monkeypatch):
    monkeypatch.setattr(up, "_stop", lambda: pytest.fail("it ended what another one started"))
    lock = try_hold(services_folder() / "up.lock", "process 4711")
    assert lock is not None
    with pytest.raises(ServiceError, match=r"another `refine up` \(process 4711\) is starting") as error:
        up.up(up.UpOptions(free_port(), free_port()))
    assert "\n" not in str(error.value)
    lock.release()


def test_what_a_killed_one_left_is_swept_by_the_next(home):
    services_folder().mkdir()
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    mark_of_it = mark().replace(str(os.getpid()), str(process.pid))
    left = services_folder() / f".state.json.{mark_of_it}.unfinished"
    left.write_text("half")
    port = free_port()
    with pytest.raises(SettingError, match="are both"):
        up.up(up.UpOptions(port, port))
    assert not left.exists()


def test_after_the_supervisors_death_down_ends_the_runs_that_died_with_it(home):
    run_id = run_of_a_killed_process()
    assert status_of(run_id) == "RUNNING"
    state_file().parent.mkdir(exist_ok=True)
    state_file().write_text('{"mlflow": "http://127.0.0.1:9"}')
    said: list[str] = []
    assert not up.down(said.append) and status_of(run_id) == "KILLED"
    assert said[0] == f"MLflow run {run_id} ended: its process is gone" and not state_file().exists()
    assert said[1:] == ["the services had died; the next `refine up` ends Prefect's runs that died with them"]


def test_after_the_supervisors_death_down_leaves_runs_in_a_database_of_their_own_to_the_next_up(home):
    state_file().parent.mkdir(exist_ok=True)
    state_file().write_text('{"mlflow": "http://127.0.0.1:9", "mlflow_database": "postgresql+pg8000"}')
    said: list[str] = []
    assert not up.down(said.append)
    assert said == ["the services had died; the next `refine up` ends MLflow's and Prefect's runs that died with them"]
    assert not (home / "mlflow.db").exists()


def test_a_server_that_does_not_answer_is_a_line_and_down_goes_on(home):
    said: list[str] = []
    last_records.end_runs("http://127.0.0.1:9", said.append)
    assert len(said) == 1 and said[0].startswith(
        "MLflow's runs stay as they are: MLflow server http://127.0.0.1:9 does"
    )
    last_records.end_flow_runs({"prefect_api": "http://127.0.0.1:9/api"}, said.append)
    assert len(said) == 2 and said[1].startswith("Prefect's runs stay as they are: ") and "\n" not in said[1]


@pytest.mark.slow
def test_two_at_once_are_one_that_runs_and_one_that_says_so(home, checkout):
    ports = ["--prefect-port", str(free_port()), "--mlflow-port", str(free_port())]
    command = [sys.executable, "-m", "refine.cli.main", "up", *ports]
    both = [
        subprocess.Popen(command, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        ended = [(*one.communicate(timeout=200), one.returncode) for one in both]
        (loser,) = [one for one in ended if one[2] != 0]
        assert (
            loser[2] == 1 and loser[1].startswith("error: another `refine up` (process ") and loser[1].count("\n") == 1
        )
        assert {one.state for one in up.programs()} == {"RUNNING"} and answers(f"http://127.0.0.1:{ports[1]}/api")
        assert "`refine status --secret` prints it" in next(one[0] for one in ended if one[2] == 0)
        again = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
        assert again.returncode == 0 and "the services run already" in again.stdout
    finally:
        up.down()


@pytest.mark.slow
def test_down_ends_the_runs_of_the_worker_and_of_killed_processes(services, home):
    worker = next(one.pid for one in up.programs() if one.name == "worker")
    janitor = psutil.Process(next(one.pid for one in up.programs() if one.name == "janitor"))
    for process in [janitor, *janitor.children(recursive=True)]:
        os.kill(process.pid, signal.SIGSTOP)  # it does not come first
    killed = run_of_a_killed_process(services["mlflow"])
    assert psutil.Process(worker).is_running() and status_of(killed) == "RUNNING"
    said: list[str] = []
    assert up.down(said.append) and wait_for(lambda: not psutil.pid_exists(worker))
    assert status_of(killed) == "KILLED"
    assert said == [f"MLflow run {killed} ended: its process is gone"]
