"""Records that MLflow did not take are kept until it does, and no other MLflow gets them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from refine.tracking import outbox
from refine.tracking.connection import connect
from refine.tracking.run import open_run

ROWS = [(step, {"train/loss": 5.0 - step, "train/notes": [1, 2]}) for step in range(1, 5)]


@pytest.fixture
def run(client, experiment):
    """A run that has the first two rows."""
    run = open_run(client, experiment, "mid refine", key="k")
    for step, values in ROWS[:2]:
        run.metrics(values, step)
    return run


def steps(client, run_id: str) -> list[int]:
    return sorted(point.step for point in client.get_metric_history(run_id, "train/loss"))


def test_the_next_connection_gets_the_missing_rows_and_the_final_status(client, run):
    file = outbox.keep(run.run_id, ROWS)
    outbox.keep(run.run_id, status="FAILED")
    connect()
    assert steps(client, run.run_id) == [1, 2, 3, 4] and not file.exists()
    info = client.get_run(run.run_id).info
    assert info.status == "FAILED" and info.end_time >= info.start_time
    assert outbox.deliver(client) == [], "it was delivered twice"


def test_an_old_final_status_does_not_end_a_resumed_run(client, run):
    file = outbox.keep(run.run_id, status="FAILED")
    line = json.loads(file.read_text())
    file.write_text(json.dumps(line | {"ended": line["ended"] - 5000}) + "\n")
    again = open_run(client, run.experiment_id, "mid refine", key="k")
    assert again.run_id == run.run_id and outbox.deliver(client) == [run.run_id]
    assert client.get_run(run.run_id).info.status == "RUNNING"


def test_another_mlflow_s_run_stays_kept(client, run, tmp_path, blank_database):
    file = outbox.keep(run.run_id, ROWS)
    shutil.copy(blank_database, tmp_path / "other.db")
    connect(f"sqlite:///{tmp_path / 'other.db'}")
    assert file.exists()
    connect()
    assert not file.exists() and steps(client, run.run_id) == [1, 2, 3, 4]


def test_a_failed_delivery_is_a_warning_of_one_line_and_loses_nothing(client, run, monkeypatch, caplog):
    file = outbox.keep(run.run_id, ROWS)

    def fail(*_, **__):
        raise ConnectionError("connection refused")

    monkeypatch.setattr(client, "log_batch", fail)
    assert outbox.deliver(client) == [] and file.exists()
    assert "were not delivered: connection refused" in caplog.text


def test_a_half_written_last_line_is_left_out_and_the_lines_after_it_are_not_lost(client, run, caplog):
    file = outbox.keep(run.run_id, ROWS[:3])
    with file.open("a") as opened:
        opened.write('{"step": 4, "metr')
    outbox.keep(run.run_id, ROWS[3:])
    assert "removed the half-written last line" in caplog.text
    with file.open("a") as opened:
        opened.write('{"status": "FAI')
    assert outbox.deliver(client) == [run.run_id] and steps(client, run.run_id) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", '{"step": true, "metrics": {}}', '{"step": 1, "metrics": 2}', '{"status": "X", "ended": 1}'],
)
def test_a_damaged_line_is_named_and_nothing_is_sent(client, run, caplog, line):
    file = outbox.keep(run.run_id, ROWS)
    file.write_text(f"{file.read_text()}{line}\n")
    assert outbox.deliver(client) == [] and file.exists() and steps(client, run.run_id) == [1, 2]
    assert f"{file} were not delivered: line 5: " in caplog.text


HOLD = """
import sys, time
from pathlib import Path
from refine.system.locks import hold
from refine.tracking.outbox import lock_of
with hold(lock_of(Path(sys.argv[1])), "the other"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_never_deliver_the_same_records(client, run):
    file = outbox.keep(run.run_id, ROWS)
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    assert outbox.deliver(client) == [] and steps(client, run.run_id) == [1, 2]
    other.kill()
    other.wait()
    assert outbox.deliver(client) == [run.run_id] and steps(client, run.run_id) == [1, 2, 3, 4]
