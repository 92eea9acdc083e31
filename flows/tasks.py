"""The tasks of the flow. Each validates, calls one function of `refine` (long ones in a process of their own), and
records; each does nothing where its result lies finished. A failure that may pass is tried again; one that the user
has to mend is not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.experiment import Experiment
from flows.log import relay, say
from flows.progress import Progress
from refine import metric_names
from refine.errors import DataError, ModelError, SettingError, TrainingError
from refine.evaluation.record import EVALUATION_FILE
from refine.phases.stages import Scored, Stage, Target, Trained, trained
from refine.system.devices import device_slots
from refine.system.locks import stage_lock
from refine.system.processes import ProcessFailed, run_in_own_process
from refine.tracking import registry, tags
from refine.tracking.champion import choose_champion
from refine.tracking.logged_checkpoints import log_checkpoints
from refine.tracking.registry import Version
from refine.tracking.relay import Relay
from refine.tracking.run import find_run, open_run
from refine.training import reward_histograms

if TYPE_CHECKING:
    from mlflow import MlflowClient

RETRIES, DELAYS = 2, [5.0, 30.0]  # seconds before the second and the third attempt
REFINE = (sys.executable, "-m", "refine.cli.main")
EVALUATE = (sys.executable, "-m", "refine.phases.evaluation")


def worth_another_try(task: Any, task_run: Any, state: Any) -> bool:
    """Whether a failed task is tried again: not where the user has to mend something first."""
    try:
        state.result()
    except (SettingError, DataError, ModelError):
        return False
    except ProcessFailed as error:
        return not error.user_error
    except Exception:
        return True
    return False


def _task(name: str, run_name: str) -> Any:
    """A task that is tried again, called `run_name` in the UI; its result is never stored by Prefect."""
    return task(
        name=name,
        task_run_name=run_name,
        retries=RETRIES,
        retry_delay_seconds=DELAYS,
        retry_condition_fn=worth_another_try,
        cache_policy=NO_CACHE,
        persist_result=False,
    )


@_task("train", "{stage.title}")
def train(experiment: Experiment, stage: Stage, model: str | None = None) -> Trained:
    """Train one stage in a process of its own, on a device of its own; started again, it goes on from its last whole
    checkpoint. model: the folder or hub name to start from; a new model (phase start) has none."""
    with stage_lock(Path(stage.folder), stage.title, say):
        done = trained(stage, experiment.stages)
        known = find_run(experiment.client, experiment.experiment_id, stage.key)
        if done is not None and known is not None:
            say(f"{stage.title}: finished before, in {stage.folder}")
            return replace(done, run_id=known.info.run_id, reused=True)
        return _train(experiment, stage, model, done)


def _train(experiment: Experiment, stage: Stage, model: str | None, done: Trained | None) -> Trained:
    """Train, where it is not done, and record."""
    run = open_run(
        experiment.client, experiment.experiment_id, stage.title, key=stage.key, parent=experiment.parent,
        tags=experiment.tags(stage.phase, stage.arm), params=experiment.settings_of(stage),
    )  # fmt: skip
    settings = experiment.settings.training
    steps = getattr(settings, stage.phase).steps if stage.arm != "none" else 0
    with run, Progress(stage.title, steps) as progress:
        with Relay(Path(stage.folder) / "metrics.jsonl", experiment.client, run.run_id, seen=progress.show):
            if done is None:
                command = train_command(experiment, stage, model)
                with device_slots(settings.processes, stage.title, say) as selected:
                    run_in_own_process(command, echo=relay, environment=selected, name=f"refine train {stage.title}")
        done = trained(stage, experiment.stages)
        if done is None:
            raise TrainingError(f"{stage.title}: ended without a result in {stage.folder}")
        run.metrics({"train/total_seconds": done.seconds, "train/total_tokens": done.tokens}, step=done.steps)
        _keep_files(experiment.client, run.run_id, Path(stage.folder))
        run.tag({tags.MODEL: done.model, tags.MODEL_HASH: done.model_hash})
    return replace(done, run_id=run.run_id)


def _keep_files(client: MlflowClient, run_id: str, folder: Path) -> None:
    """The reward histograms and the kept checkpoints of a stage, in its MLflow run."""
    for name in (reward_histograms.HISTOGRAM_TABLE, reward_histograms.HISTOGRAM_PICTURE):
        if (folder / name).exists():
            client.log_artifact(run_id, str(folder / name))
    log_checkpoints(client, run_id, folder)


def train_command(experiment: Experiment, stage: Stage, model: str | None) -> list[str]:
    """The command line that trains a stage, with the settings as they were when the experiment began."""
    stages = experiment.stages
    command = [*REFINE, "train", stage.phase, "--output", stage.folder, "--data", str(stages.data.folder),
               "--params", str(stages.frozen())]  # fmt: skip
    if model is not None:
        command += ["--arm", stage.arm, "--model", model]
        if revision := stages.revision(model):
            command += ["--revision", revision]
    return command


@_task("evaluate", "evaluation of {names}")
def evaluate(experiment: Experiment, targets: Sequence[Target], names: str) -> list[Scored]:
    """Score every target on the same documents and prompts, all in one process."""
    fresh = [not (Path(target.stage.folder) / EVALUATION_FILE).exists() for target in targets]
    if any(fresh):
        request = experiment.stages.frozen().with_name(f"evaluate-{experiment.parent}.json")
        request.write_text(json.dumps(_request(experiment, targets)), encoding="utf-8")
        with device_slots(1, "evaluation", say) as selected:
            run_in_own_process([*EVALUATE, str(request)], echo=say, environment=selected, name="evaluation")
        request.unlink()
    else:
        say("evaluation: finished before")
    return [_recorded(experiment, *each) for each in zip(targets, fresh, strict=True)]


def _request(experiment: Experiment, targets: Sequence[Target]) -> dict[str, Any]:
    """What refine.phases.evaluation is told."""
    settings = experiment.settings
    test_time = settings.training.test_time
    return {
        "data": str(experiment.stages.data.folder),
        "batch_size": settings.evaluation.batch_size,
        "seed": settings.seed,
        "test_time": test_time.model_dump(mode="json") if test_time else None,
        "models": [
            {
                "name": f"{target.phase} {target.arm}".strip(),
                "model": target.model.model,
                "output": target.stage.folder,
                "adapted_by": target.adapted_by,
            }
            for target in targets
        ],
    }


def _recorded(experiment: Experiment, target: Target, fresh: bool) -> Scored:
    """The scores in a stage's folder, with an MLflow run that holds them."""
    client, stage, model = experiment.client, target.stage, target.model
    found = json.loads((Path(stage.folder) / EVALUATION_FILE).read_text(encoding="utf-8"))
    known = find_run(client, experiment.experiment_id, stage.key)
    run_id = known.info.run_id if known else ""
    metrics = {**({} if target.adapted_by else _validation(model)), **found["metrics"]}
    if known is None:
        of_target = experiment.tags("test_time" if target.adapted_by else "evaluation", target.arm)
        with open_run(
            client, experiment.experiment_id, stage.title, key=stage.key, parent=experiment.parent,
            tags={**of_target, tags.TRAINED_BY: model.run_id}, params=experiment.settings_of(model.stage),
        ) as run:  # fmt: skip
            run.metrics(metrics, step=model.steps)
            for file in (EVALUATION_FILE, "table.md", "answers.jsonl"):
                if (Path(stage.folder) / file).exists():
                    client.log_artifact(run.run_id, str(Path(stage.folder) / file))
            run_id = run.run_id
    scored_on = found.get("settings", {}).get("scored_on") or experiment.stages.scored_on()
    return Scored(target, str(scored_on), run_id, not fresh, found["seconds"], metrics)


def _validation(model: Trained) -> dict[str, float]:
    """What training itself measured on the held-out sequences at its end, above all the rewards."""
    return {name: value for name, value in model.metrics.items() if name.startswith("val/")}


@_task("register", "registration of {scored.target.phase} {scored.target.arm}")
def register(experiment: Experiment, scored: Scored) -> Version:
    """Make a trained and scored model a version of the registered model."""
    settings, model, target = experiment.settings.registry, scored.target.model, scored.target
    version = registry.register(
        experiment.client,
        settings.model_name,
        model.model,
        key=f"{experiment.name}-{target.stage.key}-{model.stage.key}",
        run_id=model.run_id,
        scored_by=scored.run_id,
        experiment_id=experiment.experiment_id,
        metrics=scored.metrics,
        settings=experiment.settings_of(model.stage),
        tags={
            **experiment.tags(target.phase, target.arm),
            tags.EVALUATION: scored.scored_on,
            tags.MODEL_HASH: model.model_hash,
            tags.EVALUATION_RUN: scored.run_id,
            tags.EVALUATION_FOLDER: target.stage.folder,
        },
        headline=_headline(scored, settings.metric),
    )
    say(f"registered {target.phase} {target.arm}: {version.name} version {version.number}")
    return version


def _headline(scored: Scored, metric: str) -> list[str]:
    """The metrics that MLflow's registry page shows as tags."""
    return [metric, *(name for name in scored.metrics if name.endswith(metric_names.HEADLINES))]


@_task("choose the champion", "champion by {metric}")
def champion(experiment: Experiment, among: Sequence[Version], metric: str) -> Version:
    """Give the alias `champion` to the best version."""
    settings = experiment.settings.registry
    best = choose_champion(experiment.client, settings.model_name, among, metric, settings.goal)
    say(f"champion: {best.name} version {best.label}, {metric} {best.metrics[metric]:.4f}")
    return best
