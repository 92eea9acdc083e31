"""The tasks of the flow. Each validates, calls one function of `refine` (long ones in a process of their own), and
records; each does nothing where its result lies finished. A failure that may pass is tried again; one that the user
has to mend is not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.experiment import Experiment
from flows.progress import Progress
from flows.records import Scored, Stage, Trained, trained
from flows.voice import relay, say
from refine.errors import DataError, ModelError, SettingError
from refine.tracking import registry
from refine.tracking.metrics import Relay
from refine.tracking.registry import Version
from refine.tracking.run import find_run, open_run
from refine.training.process import ProcessFailed, run_in_own_process

RETRIES, DELAYS = 2, [5.0, 30.0]  # seconds before the second and the third attempt
REFINE = (sys.executable, "-m", "refine.cli.main")
EVALUATE = (sys.executable, "-m", "flows.evaluating")


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
    """Train one stage in a process of its own; started again, it goes on from its last whole checkpoint."""
    client = experiment.client
    done = trained(stage, experiment.stages)
    known = find_run(client, experiment.experiment_id, stage.key)
    if done is not None and known is not None:
        say(f"{stage.title}: finished before, in {stage.folder}")
        return _with(done, known.info.run_id, reused=True)
    run = open_run(
        client, experiment.experiment_id, stage.title, key=stage.key, parent=experiment.parent,
        tags=experiment.tags(stage.phase, stage.arm), params=experiment.settings_of(stage),
    )  # fmt: skip
    steps = getattr(experiment.settings.training, stage.phase).steps if stage.arm != "none" else 0
    series = Path(stage.folder) / "metrics.jsonl"
    with run, Progress(stage.title, steps) as progress:
        with Relay(series, client, run.run_id, seen=progress.show):
            if done is None:
                run_in_own_process(_command(experiment, stage, model), echo=relay, name=f"refine train {stage.title}")
        done = trained(stage, experiment.stages)
        if done is None:
            raise DataError(f"{stage.title}: ended without a result in {stage.folder}")
        run.metrics({"train/total_seconds": done.seconds, "train/total_tokens": done.tokens}, step=done.steps)
        run.tag({"refine.model": done.model, "refine.model_hash": done.model_hash})
    return _with(done, run.run_id, reused=False)


def _command(experiment: Experiment, stage: Stage, model: str | None) -> list[str]:
    stages = experiment.stages
    command = [*REFINE, "train", stage.phase, "--output", stage.folder, "--data", str(stages.data.folder),
               "--params", str(stages.frozen())]  # fmt: skip
    if model is not None:
        command += ["--arm", stage.arm, "--model", model]
        if revision := stages.revision(model):
            command += ["--revision", revision]
    return command


def _with(done: Trained, run_id: str, reused: bool) -> Trained:
    from dataclasses import replace

    return replace(done, run_id=run_id, reused=reused)


@_task("evaluate", "evaluation of {names}")
def evaluate(experiment: Experiment, models: Sequence[Trained], names: str) -> list[Scored]:
    """Score every model on the same documents and prompts, all in one process."""
    stages = [experiment.stages.evaluation(model) for model in models]
    wanted = [
        {"name": stage.arm, "model": model.model, "output": stage.folder}
        for stage, model in zip(stages, models, strict=True)
    ]
    fresh = [not (Path(stage.folder) / "evaluation.json").exists() for stage in stages]
    if any(fresh):
        request = experiment.stages.frozen().with_name(f"evaluate-{experiment.parent}.json")
        batch_size = experiment.settings.evaluation.batch_size
        data = str(experiment.stages.data.folder)
        request.write_text(json.dumps({"data": data, "batch_size": batch_size, "models": wanted}), encoding="utf-8")
        run_in_own_process([*EVALUATE, str(request)], echo=say, name="evaluation")
        request.unlink()
    else:
        say("evaluation: finished before")
    return [_recorded(experiment, *each) for each in zip(models, stages, fresh, strict=True)]


def _recorded(experiment: Experiment, model: Trained, stage: Stage, fresh: bool) -> Scored:
    """The scores in a stage's folder, with an MLflow run that holds them."""
    client = experiment.client
    found = json.loads((Path(stage.folder) / "evaluation.json").read_text(encoding="utf-8"))
    known = find_run(client, experiment.experiment_id, stage.key)
    run_id = known.info.run_id if known else ""
    metrics = {**_validation(model), **found["metrics"]}
    if known is None:
        tags = {**experiment.tags("evaluation", stage.arm), "refine.trained_by": model.run_id}
        with open_run(
            client, experiment.experiment_id, stage.title, key=stage.key, parent=experiment.parent, tags=tags,
            params=experiment.settings_of(model.stage),
        ) as run:  # fmt: skip
            run.metrics(metrics, step=model.steps)
            for file in ("evaluation.json", "table.md", "answers.jsonl"):
                if (Path(stage.folder) / file).exists():
                    client.log_artifact(run.run_id, str(Path(stage.folder) / file))
            run_id = run.run_id
    scored_on = experiment.stages.scored_on()
    return Scored(stage, model.stage.arm, scored_on, run_id, not fresh, found["seconds"], metrics)


def _validation(model: Trained) -> dict[str, float]:
    """What training itself measured on the held-out sequences at its end, above all the rewards."""
    return {name: value for name, value in model.metrics.items() if name.startswith("val/")}


@_task("register", "registration of {scored.arm}")
def register(experiment: Experiment, model: Trained, scored: Scored) -> Version:
    """Make a trained and scored model a version of the registered model."""
    settings = experiment.settings.registry
    version = registry.register(
        experiment.client,
        settings.model_name,
        model.model,
        key=f"{experiment.name}-{scored.stage.key}-{model.stage.key}",
        run_id=model.run_id,
        scored_by=scored.run_id,
        experiment_id=experiment.experiment_id,
        metrics=scored.metrics,
        settings=experiment.settings_of(model.stage),
        tags={
            **experiment.tags(model.stage.phase, scored.arm),
            registry.EVALUATION: scored.scored_on,
            "refine.model_hash": model.model_hash,
            "refine.evaluation_folder": scored.stage.folder,
        },
        headline=_headline(scored, settings.metric),
    )
    say(f"registered {scored.arm}: {version.name} version {version.number}")
    return version


def _headline(scored: Scored, metric: str) -> list[str]:
    """The metrics that MLflow's registry page shows as tags."""
    return [metric, *(name for name in scored.metrics if name.endswith(("/loss", "/accuracy", "/score")))]


@_task("choose the champion", "champion by {metric}")
def champion(experiment: Experiment, among: Sequence[Version], metric: str) -> Version:
    """Give the alias `champion` to the best version."""
    settings = experiment.settings.registry
    best = registry.choose_champion(experiment.client, settings.model_name, among, metric, settings.goal)
    say(f"champion: {best.name} version {best.label}, {metric} {best.metrics[metric]:.4f}")
    return best
