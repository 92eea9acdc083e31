"""A run is resumed by its key, and never stays RUNNING without an owner."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from refine.system.liveness import ALIVE, OWNER, owner
from refine.tracking.run import end_dead_runs, find_run, open_run


def status(client, run_id: str) -> str:
    return client.get_run(run_id).info.status


def test_a_run_ends_as_its_work_ended(client, experiment):
    with open_run(client, experiment, "good") as good:
        assert status(client, good.run_id) == "RUNNING"
    with pytest.raises(ValueError), open_run(client, experiment, "bad") as bad:
        raise ValueError("the loss is not finite")
    with pytest.raises(KeyboardInterrupt), open_run(client, experiment, "interrupted") as interrupted:
        raise KeyboardInterrupt
    assert [status(client, run.run_id) for run in (good, bad, interrupted)] == ["FINISHED", "FAILED", "KILLED"]
    assert client.get_run(bad.run_id).data.tags["refine.error"] == "ValueError: the loss is not finite"


def test_an_unfinished_run_goes_on_and_a_finished_one_is_found(client, experiment):
    with pytest.raises(ValueError), open_run(client, experiment, "mid refine", key="k1") as first:
        raise ValueError
    assert find_run(client, experiment, "k1") is None
    with open_run(client, experiment, "mid refine", key="k1", params={"a": {"b": 1}}) as again:
        assert again.run_id == first.run_id and status(client, again.run_id) == "RUNNING"
    assert find_run(client, experiment, "k1").info.run_id == first.run_id
    with open_run(client, experiment, "mid refine", key="k1") as third:
        assert third.run_id != first.run_id
    assert client.get_run(first.run_id).data.params == {"a.b": "1"}


def test_runs_are_nested_and_carry_their_settings(client, experiment):
    with (
        open_run(client, experiment, "experiment") as parent,
        open_run(
            client, experiment, "mid refine", parent=parent.run_id, params={"objective": {"k": 5}, "note": "x" * 9000}
        ) as child,
    ):
        child.metrics({"val/loss": 3.5, "bad": float("nan")})
    run = client.get_run(child.run_id)
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert run.data.params["objective.k"] == "5" and len(run.data.params["note"]) == 6000
    assert run.data.metrics == {"val/loss": 3.5, "non_finite_values": 1.0}


KILLED = """
import os, sys, time
from refine.tracking.connection import connect, experiment_id
from refine.tracking.run import open_run
client = connect()
with open_run(client, experiment_id(client, "sample"), "doomed") as run:
    open(sys.argv[1] + ".tmp", "w").write(run.run_id)
    os.replace(sys.argv[1] + ".tmp", sys.argv[1])
    time.sleep(600)
"""


def test_a_killed_process_leaves_no_run_running(client, experiment, tmp_path):
    note = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(note)])
    deadline = time.monotonic() + 60
    while not note.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    run_id = note.read_text()
    assert end_dead_runs(client) == [] and status(client, run_id) == "RUNNING"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert end_dead_runs(client) == [run_id]
    assert status(client, run_id) == "KILLED"


def test_a_silent_run_of_another_machine_is_ended_and_a_living_one_is_not(client, experiment):
    elsewhere = json.dumps({**owner(), "host": "another-machine"})
    now = int(time.time())
    dead, living, foreign = (
        client.create_run(experiment, tags=tags).info.run_id
        for tags in ({OWNER: elsewhere, ALIVE: str(now - 100)}, {OWNER: elsewhere, ALIVE: str(now)}, {})
    )
    assert end_dead_runs(client, [experiment]) == [dead]
    assert status(client, living) == status(client, foreign) == "RUNNING"


def test_a_process_id_that_was_reused_does_not_keep_a_run_alive(client, experiment):
    stale = json.dumps({**owner(), "started": 1.0})
    run_id = client.create_run(experiment, tags={OWNER: stale, ALIVE: str(int(time.time()))}).info.run_id
    assert end_dead_runs(client, [experiment]) == [run_id]


def test_a_clock_that_is_set_kills_no_run_and_a_reboot_does(client, experiment, monkeypatch):
    import psutil

    with open_run(client, experiment, "long") as run:
        create_time, boot_time = psutil.Process.create_time, psutil.boot_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: create_time(self) + 5.0)
        monkeypatch.setattr(psutil, "boot_time", lambda: boot_time() + 5.0)  # both follow the clock
        assert end_dead_runs(client) == [] and status(client, run.run_id) == "RUNNING"
        monkeypatch.setattr("refine.system.liveness._boot", lambda: "another")
        assert end_dead_runs(client) == [run.run_id]


def test_a_run_that_is_resumed_counts_as_dead_at_no_moment(client, experiment, monkeypatch):
    stale = {OWNER: json.dumps({**owner(), "started": 1.0}), ALIVE: "0", "refine.key": "k1"}
    run_id = client.create_run(experiment, tags=stale).info.run_id
    assert end_dead_runs(client) == [run_id]
    ended: list[str] = []

    def then_end_dead_runs(request):
        def both(*given, **named):
            request(*given, **named)
            ended.extend(end_dead_runs(client))

        return both

    for name in ("update_run", "log_batch"):  # the requests that resume it
        monkeypatch.setattr(client, name, then_end_dead_runs(getattr(client, name)))
    with open_run(client, experiment, "mid refine", key="k1") as again:
        assert again.run_id == run_id and ended == [] and status(client, run_id) == "RUNNING"


def test_an_mlflow_that_does_not_answer_at_the_end_hides_no_error_of_the_work(client, experiment, monkeypatch, caplog):
    def fail(*_, **__):
        raise ConnectionError("connection refused")

    with pytest.raises(ValueError, match="not finite"), open_run(client, experiment, "bad") as run:
        monkeypatch.setattr(client, "log_batch", fail)
        raise ValueError("the loss is not finite")
    assert f"the status FAILED of run {run.run_id} is kept in" in caplog.text and "connection refused" in caplog.text


def test_a_living_run_that_was_ended_while_mlflow_did_not_answer_is_running_again(client, experiment, monkeypatch):
    monkeypatch.setattr("refine.tracking.run.BEAT", 0.05)
    real = client.set_tag

    def fail(*_, **__):
        raise ConnectionError("connection refused")

    with open_run(client, experiment, "long") as run:
        monkeypatch.setattr(client, "set_tag", fail)
        time.sleep(0.3)
        client.set_terminated(run.run_id, "KILLED")
        client.log_batch(run.run_id, tags=[])
        monkeypatch.setattr(client, "set_tag", real)
        deadline = time.monotonic() + 20
        while status(client, run.run_id) != "RUNNING" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert status(client, run.run_id) == "RUNNING"
    assert status(client, run.run_id) == "FINISHED"
