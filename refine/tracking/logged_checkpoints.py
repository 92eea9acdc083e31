"""The checkpoints that a training kept, each as a logged model of its MLflow run: weights, config and tokenizer, but no
pickles and no files that only a resume needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from refine.metric_names import TRAINING
from refine.training import checkpoints

if TYPE_CHECKING:
    from mlflow import MlflowClient

VALIDATION = re.compile(r"[^/]+(/prompts)?/(loss|accuracy|answer_loss|answer_accuracy|reward/[^/]+/mean)")
ENDINGS = {".safetensors", ".json", ".model", ".txt", ".jinja"}  # of weights, config and tokenizer
FOR_RESUME = {checkpoints.MANIFEST, "trainer_state.json"}


def log_checkpoints(client: MlflowClient, run_id: str, output: Path) -> list[str]:
    """Log the complete checkpoints in `output` that the run does not have yet. Returns the ids of the logged models.

    Each has its step (as parameter `step`, and in the run's outputs) and the run's validation metrics of that step.
    """
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    _remove_unfinished(client, run.info.experiment_id, run_id)
    known = {one.step for one in (run.outputs.model_outputs if run.outputs else [])}
    made = []
    for step, folder in checkpoints.complete(output):
        if step in known or checkpoints.is_sharded(folder):  # shards are no model that could be loaded
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
            if file.suffix in ENDINGS and file.name not in FOR_RESUME:
                client.log_model_artifact(model.model_id, str(file))
        client.finalize_logged_model(model.model_id, "READY")
        _log_metrics(client, run_id, model.model_id, step)
        # Last: a checkpoint whose logging was interrupted is no output of the run, and is logged again.
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        made.append(model.model_id)
    return made


def _remove_unfinished(client: MlflowClient, experiment_id: str, run_id: str) -> None:
    """Remove the logged models of a process that was killed while it logged them."""
    for unfinished in client.search_logged_models(
        [experiment_id], f"source_run_id = '{run_id}' AND status = 'PENDING'"
    ):
        client.delete_logged_model(unfinished.model_id)


def _log_metrics(client: MlflowClient, run_id: str, model_id: str, step: int) -> None:
    """Log the run's validation points of this step to the model. The run itself does not get them twice, since name,
    value, step and time are the same."""
    from mlflow.entities import Metric

    logged = client.get_run(run_id).data.metrics
    names = [name for name in logged if VALIDATION.fullmatch(name) and not name.startswith(TRAINING)]
    points = [point for name in names for point in client.get_metric_history(run_id, name) if point.step == step]
    metrics = [Metric(p.key, p.value, p.timestamp, step, model_id=model_id, run_id=run_id) for p in points]
    if metrics:
        client.log_batch(run_id, metrics=metrics)
