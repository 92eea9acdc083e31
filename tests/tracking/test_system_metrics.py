"""System metrics go to the run during the block, unless the user turned them off; none of their errors ends it."""

from __future__ import annotations

import time

import pytest

from refine.tracking import system_metrics as room
from refine.tracking.run import open_run
from refine.tracking.system_metrics import VARIABLE, system_metrics


def measured(client, run_id: str) -> set[str]:
    return {name for name in client.get_run(run_id).data.metrics if name.startswith("system/")}


def test_a_run_has_the_use_of_this_machine(client, experiment, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with open_run(client, experiment, "mid refine") as run, system_metrics(client, run.run_id):
        deadline = time.monotonic() + 60
        while not measured(client, run.run_id) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= measured(client, run.run_id)


@pytest.mark.parametrize("value", ["false", "False", "0"])
def test_the_user_turns_them_off(client, experiment, monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    monkeypatch.setattr(
        "mlflow.system_metrics.system_metrics_monitor.SystemMetricsMonitor", lambda *a, **k: pytest.fail("measured")
    )
    with open_run(client, experiment, "mid refine") as run, system_metrics(client, run.run_id):
        pass
    assert not measured(client, run.run_id)


def test_a_machine_that_cannot_be_measured_is_no_error(client, experiment, monkeypatch, caplog):
    def fails(*args, **options):
        raise OSError("no counters here")

    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("mlflow.system_metrics.system_metrics_monitor.SystemMetricsMonitor", fails)
    with open_run(client, experiment, "mid refine") as run, system_metrics(client, run.run_id):
        pass
    assert "no counters here" in caplog.text and client.get_run(run.run_id).info.status == "FINISHED"


def test_a_server_that_does_not_answer_does_not_hold_up_the_end(client, experiment, monkeypatch):
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(room, "PATIENCE", 0.1)
    monkeypatch.setattr(SystemMetricsMonitor, "finish", lambda self: time.sleep(30))
    started = time.monotonic()
    with open_run(client, experiment, "mid refine") as run, system_metrics(client, run.run_id):
        ended = time.monotonic()
    assert time.monotonic() - ended < 10 and ended - started < 60
