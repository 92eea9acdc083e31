"""The checkpoints that a training kept, each as a logged model of its MLflow run with its step: weights, config and
tokenizer, nothing that only a resume needs and nothing pickled."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from refine.training import checkpoints

if TYPE_CHECKING:
    from mlflow import MlflowClient

SHOWN = re.compile(r"[^/]+/(loss|accuracy|answer_loss|answer_accuracy|reward/[^/]+/mean)")  # of validation
KEPT = {".safetensors", ".json", ".model", ".txt", ".jinja"}  # endings of weights, config and tokenizer
OF_TRAINING = {checkpoints.MANIFEST, "trainer_state.json"}


def log_checkpoints(client: MlflowClient, run_id: str, output: Path) -> list[str]:
    """Log the whole checkpoints in `output` that the run does not have yet; returns the ids of the new logged models.

    Each carries its step (`step` among its parameters and in the run's outputs) and the run's validation metrics of
    that step.
    """
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    _remove_unfinished(client, run.info.experiment_id, run_id)
    known = {one.step for one in (run.outputs.model_outputs if run.outputs else [])}
    made = []
    for step, folder in checkpoints.whole(output):
        if step in known:
            continue
        model = client.create_logged_model(
            run.info.experiment_id,
            name=f"{checkpoints.PREFIX}{step}",
            source_run_id=run_id,
            params={"step": str(step)},
            tags={"run": run.info.run_name or ""},
            model_type="causal-lm",
        )
        for file in sorted(folder.iterdir()):
            if file.suffix in KEPT and file.name not in OF_TRAINING:
                client.log_model_artifact(model.model_id, str(file))
        client.finalize_logged_model(model.model_id, "READY")
        _log_metrics(client, run_id, model.model_id, step)
        # Last: what was killed before is no output of the run, and is logged again.
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        made.append(model.model_id)
    return made


def _remove_unfinished(client: MlflowClient, experiment_id: str, run_id: str) -> None:
    """What a process left that was killed while it logged a checkpoint."""
    for left in client.search_logged_models([experiment_id], f"source_run_id = '{run_id}' AND status = 'PENDING'"):
        client.delete_logged_model(left.model_id)


def _log_metrics(client: MlflowClient, run_id: str, model_id: str, step: int) -> None:
    """The run's own validation points of this step, on the model as well. The same in name, value, step and time, they
    are not logged to the run a second time."""
    from mlflow.entities import Metric

    names = [
        name for name in client.get_run(run_id).data.metrics if SHOWN.fullmatch(name) and not name.startswith("train/")
    ]
    points = [point for name in names for point in client.get_metric_history(run_id, name) if point.step == step]
    if points:
        client.log_batch(
            run_id,
            metrics=[
                Metric(one.key, one.value, one.timestamp, step, model_id=model_id, run_id=run_id) for one in points
            ],
        )
