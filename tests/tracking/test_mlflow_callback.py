"""A user's training script with MlflowCallback loses no point and logs none twice, and no step waits for MLflow."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerState

from refine.tracking import outbox
from refine.tracking.connection import connect
from refine.tracking.run import end_dead_runs
from refine.tracking.sender import NON_FINITE

HERE = Path(__file__).parent


@pytest.fixture
def script(monkeypatch):
    """The training script, as a module."""
    monkeypatch.syspath_prepend(str(HERE))
    import recorded_training

    return recorded_training


def recorded(client, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Every point of every metric of a run."""
    names = client.get_run(run_id).data.metrics
    return {name: sorted((p.step, p.value) for p in client.get_metric_history(run_id, name)) for name in names}


def logged(trainer) -> dict[str, list[tuple[int, float]]]:
    """Every number that the trainer logged."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in trainer.state.log_history:
        for name, value in row.items():
            if "/" in name and not isinstance(value, list):
                found.setdefault(name, []).append((row["step"], value))
    return found


def fail(*_, **__):
    raise ConnectionError("connection refused")


def test_every_number_is_in_the_run_once_and_the_run_has_ended(client, script, tmp_path):
    trainer, run_id = script.train(client, tmp_path / "out")
    found = recorded(client, run_id)
    assert found == logged(trainer) and len(found["train/loss"]) == 8
    assert [step for step, _ in found["val/reward/binary/mean"]] == [4, 8]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(run_id)} == {"reward_histograms.csv", "reward_histograms.png"}


def test_rows_wait_for_each_other_and_go_in_one_request(client, script, tmp_path, monkeypatch):
    requests, real = [], client.log_batch
    monkeypatch.setattr(
        client, "log_batch", lambda run, metrics=(), **more: (requests.append(len(metrics)), real(run, metrics, **more))
    )
    trainer, _ = script.train(client, tmp_path / "out", every=60.0, checkpoints=False)
    assert requests == [sum(len(points) for points in logged(trainer).values())]


def test_values_that_are_not_finite_break_nothing(client, experiment, script, tmp_path):
    state, args = TrainerState(is_world_process_zero=True), SimpleNamespace(output_dir=str(tmp_path))
    with script.open_run(client, experiment, "odd") as run:
        callback = script.MlflowCallback(run, every=0.02)
        callback.on_train_begin(args, state, None)
        for step, value in enumerate([1.0, math.nan, 2.0, math.inf, 3.0], 1):
            state.global_step = step
            callback.on_log(args, state, None, logs={"loss": value, "grad_norm": 1.0})
        callback.on_train_end(args, state, None)
    found = recorded(client, run.run_id)
    assert found["train/loss"] == [(1, 1.0), (3, 2.0), (5, 3.0)] and len(found["train/grad_norm"]) == 5
    assert found[NON_FINITE] == [(2, 1.0), (4, 2.0)]


def test_each_kept_checkpoint_is_a_logged_model_with_its_step_and_weights_only(client, script, tmp_path):
    _, run_id = script.train(client, tmp_path / "out")
    run = client.get_run(run_id)
    steps = {output.step: output.model_id for output in run.outputs.model_outputs}
    assert sorted(steps) == [4, 8]
    for step, model_id in steps.items():
        model = client.get_logged_model(model_id)
        assert (model.name, model.status, model.params) == (f"checkpoint-{step}", "READY", {"step": str(step)})
        (loss,) = [metric for metric in model.metrics if metric.key == "val/loss"]
        assert (loss.step, loss.value) == (step, dict(recorded(client, run_id)["val/loss"])[step])
        folder = Path(model.artifact_location.removeprefix("file://"))
        assert {file.name for file in folder.iterdir()} == {
            "config.json",
            "model.safetensors",
            "generation_config.json",
        }
        assert script.RefineTrainer(str(folder), script.RefineArguments(use_cpu=True)).model.config.vocab_size == 32


def test_a_killed_script_leaves_no_run_running_and_resumes_its_run_without_a_step_twice(
    client, experiment, script, tmp_path
):
    command = [sys.executable, str(HERE / "recorded_training.py"), str(tmp_path / "out")]
    assert subprocess.run(command, timeout=500).returncode == -signal.SIGKILL
    (dead,) = client.search_runs([experiment])
    assert [step for step, _ in recorded(client, dead.info.run_id)["train/loss"]] == [1, 2, 3, 4, 5]
    assert end_dead_runs(client) == [dead.info.run_id]
    trainer, run_id = script.train(client, tmp_path / "out")
    assert run_id == dead.info.run_id and client.get_run(run_id).info.status == "FINISHED"
    found, wanted = recorded(client, run_id), logged(trainer)
    for timed in ("train/seconds", "train/tokens_per_second"):  # step 5 was trained twice, and logged once
        assert [step for step, _ in found.pop(timed)] == [step for step, _ in wanted.pop(timed)]
    assert found == wanted


def test_a_failing_training_leaves_its_last_rows_and_its_error(client, experiment, script, tmp_path):
    def fail():
        raise RuntimeError("the loss is not finite")

    with pytest.raises(RuntimeError, match="not finite"):
        script.train(client, tmp_path / "out", [script.At(3, fail)], every=60.0)
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FAILED" and run.data.tags["refine.error"] == "RuntimeError: the loss is not finite"
    assert [step for step, _ in recorded(client, run.info.run_id)["train/loss"]] == [1, 2, 3]


def test_an_mlflow_that_does_not_answer_costs_a_warning_and_gets_every_point_later(
    client, script, tmp_path, monkeypatch, caplog
):
    def leave():
        monkeypatch.setattr(client, "log_batch", fail)
        monkeypatch.setattr(client, "set_terminated", fail)

    with caplog.at_level(logging.WARNING):
        trainer, run_id = script.train(client, tmp_path / "out", [script.At(3, leave)], patience=0.2)
    assert trainer.state.global_step == 8, "the training was stopped"
    kept = outbox.folder() / f"{run_id}.jsonl"
    assert "connection refused" in caplog.text and str(kept) in caplog.text and "Traceback" not in caplog.text
    assert len(recorded(client, run_id).get("train/loss", [])) < 8 and client.get_run(run_id).info.status == "RUNNING"
    assert kept.exists()
    again = connect()
    assert recorded(again, run_id) == logged(trainer) and not kept.exists()
    assert again.get_run(run_id).info.status == "FINISHED"


@pytest.fixture
def server(home, monkeypatch):
    """A real MLflow server on the home's database, which has been started: (start, stop)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri, running = f"http://127.0.0.1:{port}", []
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        "--backend-store-uri",
        f"sqlite:///{home / 'mlflow.db'}",
        "--serve-artifacts",
        "--artifacts-destination",
        str(home / "served"),
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}

    def start() -> None:
        log = (home / "server.log").open("ab")
        running.append(
            subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=home)
        )
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1).close()
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError((home / "server.log").read_text()[-2000:])

    def stop() -> None:
        process = running.pop()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    yield start, stop
    while running:
        stop()


@pytest.mark.slow
def test_a_server_that_stops_for_a_while_or_at_the_end_loses_no_point(server, script, tmp_path, caplog):
    start, stop = server
    client = connect()
    steps: list[int] = []

    class Note(script.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    def stop_for_a_while():
        stop()
        time.sleep(1.0)  # some turns fail meanwhile

    disturbances = [script.At(3, stop_for_a_while), script.At(7, start), Note()]
    trainer, run_id = script.train(client, tmp_path / "out", disturbances)
    assert steps == list(range(1, 9)) and recorded(client, run_id) == logged(trainer)
    assert client.get_run(run_id).info.status == "FINISHED" and len(client.get_run(run_id).outputs.model_outputs) == 2

    with caplog.at_level(logging.WARNING):
        trainer, run_id = script.train(client, tmp_path / "other", [script.At(5, stop)], patience=1.0)
    assert trainer.state.global_step == 8
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("refine")]
    assert len(ours) == 2 and all("MLflow does not answer" in line and "\n" not in line for line in ours)
    start()
    again = connect()
    assert recorded(again, run_id) == logged(trainer) and again.get_run(run_id).info.status == "FINISHED"
    assert [one.name for one in outbox.folder().iterdir()] in ([], [".locks"])
