"""Readers of run folders, evaluations, and what our processes tell each other."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.hostile import mutations as bad
from tests.hostile.reader import Reader, environment, put


def evaluation_record() -> dict[str, Any]:
    estimate = {"value": 0.5, "samples": 2, "low": 0.1, "high": 0.9}
    task = {
        "task": "niah_single_1", "length": 64, "score": estimate, "log_prob": estimate, "cut": 0, "scores": [0.0, 1.0],
        "log_probs": [-1.0, -2.0], "adapt_seconds": 0.0,
    }  # fmt: skip
    position = {
        "first": 2, "last": 16, "loss": 1.5, "accuracy": 0.5, "tokens": 30, "loss_interval": [1.0, 2.0],
        "sequence_losses": [1.0, 2.0],
    }  # fmt: skip
    score = {
        "loss": 1.5, "accuracy": 0.5, "tokens": 30, "sequences": 2, "by_position": [position],
        "loss_interval": [1.0, 2.0], "accuracy_interval": None, "sequence_losses": [1.0, 2.0],
        "sequence_tokens": [15, 15],
    }  # fmt: skip
    harness = {"task": "piqa", "metric": "acc", "value": 0.5, "error": 0.1, "samples": 4}
    return {
        "model": "m", "next_token": {"val": score}, "tasks": [task], "harness": [harness], "seconds": 1.0,
        "settings": {"scored_on": "x"},
    }  # fmt: skip


IDENTITY = {"phase": "mid", "arm": "sft", "seed": 1, "settings": {"steps": 2, "objective": {"positions": 3}}}

MODEL = {
    "weights": b"12",
    "complete.json": bad.as_json({"weights": {"size": 2, "sha256": hashlib.sha256(b"12").hexdigest()}}),
}
RESULT = {**IDENTITY, "identity_hash": "0" * 16, "steps": 2, "tokens": 10, "seconds": 1.0, "metrics": {"val/loss": 1.0},
          "files": {"model/complete.json": hashlib.sha256(MODEL["complete.json"]).hexdigest()}}  # fmt: skip

REQUEST = {
    "data": "prepared", "batch_size": 2, "seed": 1, "test_time": None,
    "models": [{"name": "m", "model": "model", "output": "out", "adapted_by": ""}],
}  # fmt: skip

EVALUATION_ROW = {"step": 1, "train/loss": 1.0, "val/reward/cosine/histogram": [1, 2]}


def _run_folder(path: Path) -> None:
    from refine.phases import run_folder

    if (record := run_folder.finished(path.parent)) is not None:
        assert isinstance(record["steps"], int | float)
    run_folder.check(path.parent, IDENTITY)


def _whole(path: Path) -> None:
    from refine.training import checkpoints

    checkpoints.is_complete(path.parent)
    checkpoints.last_complete(path.parent.parent)


def good_checkpoint(folder: Path) -> None:
    """folder/checkpoint-1 with its manifest; folder/identity.json."""
    put(folder / "checkpoint-1", {"trainer_state.json": b"{}", "complete.json": b'{"trainer_state.json": 2}'})


def good_finished(folder: Path) -> None:
    """A finished run."""
    put(folder, {"identity.json": bad.as_json(IDENTITY), "result.json": bad.as_json(RESULT)})
    put(folder / "model", MODEL)


def _services_state(path: Path) -> None:
    from refine.system.local_services import services_state

    with environment(REFINE_HOME=str(path.parent.parent)):
        services_state().get("prefect_api")


def _load_evaluation(path: Path) -> None:
    from refine.evaluation.record import Evaluation
    from refine.reports.evaluations import find_in_folder
    from refine.reports.paper_files import as_markdown
    from refine.reports.paper_tables import tables

    found = Evaluation.load(path)
    found.metrics()
    found.table()
    as_markdown(tables(find_in_folder(path.parents[2])), "title")


def _metrics_reader(path: Path) -> None:
    from refine.tracking.relay import MetricsReader

    reader = MetricsReader(path)
    try:
        for step, metrics in reader.new_rows():
            assert isinstance(step, int)
            assert isinstance(metrics, dict)
    finally:
        reader.close()


def _outbox(path: Path) -> None:
    from refine.tracking import outbox
    from tests.hostile.fakes import Client

    with environment(REFINE_HOME=str(path.parent.parent)):
        delivered = outbox.deliver(Client())  # type: ignore[arg-type]
    assert not path.is_file() or not delivered


def _request(path: Path) -> None:
    from refine.phases.evaluation import Request

    Request.read(path)


def _pretraining(path: Path) -> None:
    from refine.phases.pretraining import prepared_of, record_of

    record_of(path.parent)
    prepared_of(path)


RUNS = (
    Reader("identity.json", "identity.json", lambda: dict(IDENTITY), bad.write_json, _run_folder, good_finished,
           names=("holds", "output folder")),
    Reader("result.json", "result.json", lambda: dict(RESULT), bad.write_json, _run_folder, good_finished),
    Reader("complete.json", "checkpoint-1/complete.json", lambda: {"trainer_state.json": 2}, bad.write_json, _whole,
           good_checkpoint),
    Reader("state.json of the services", "services/state.json",
           lambda: {"prefect": "http://x", "prefect_api": "http://x/api", "mlflow": "http://y", "pool": "refine"},
           bad.write_json, _services_state),
    Reader("evaluation.json", "report/sft/1/evaluation.json", evaluation_record, bad.write_json, _load_evaluation,
           names=("report", "evaluation")),
    Reader("evaluation request", "request.json", lambda: json.loads(json.dumps(REQUEST)), bad.write_json, _request),
    Reader("training.json of a pretraining", "training.json", lambda: {"made_from": {"settings": "x", "run": "y"}},
           bad.write_json, _pretraining),
    Reader("metrics.jsonl", "metrics.jsonl", lambda: [dict(EVALUATION_ROW)] * 3, bad.write_lines, _metrics_reader),
    Reader("outbox", "unsent/run.jsonl",
           lambda: [{"step": 1, "metrics": {"a": 1.0}}, {"status": "FINISHED", "ended": 1}], bad.write_lines, _outbox),
)  # fmt: skip
