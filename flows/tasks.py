"""The tasks of the flow. Each validates, calls one function of `refine` (a long one in its own process) and records the
result. A task whose result exists does nothing. Prefect retries a failed task, unless the user must correct something.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.experiment import Experiment
from flows.progress import ProgressArtifact, relay, say
from refine.errors import DataError, ModelError, SettingError, TrainingError
from refine.evaluation.record import EVALUATION_FILE, recorded_metrics
from refine.metric_names import HISTOGRAM_PICTURE, HISTOGRAM_TABLE, METRICS_FILE
from refine.phases.evaluation import ModelRequest, Request
from refine.phases.stages import Scored, Stage, Target, Trained, trained
from refine.reports import headline
from refine.system.devices import THREADS, device_slots, shared_variables
from refine.system.forks import ForkServer
from refine.system.leftovers import temporary_folder
from refine.system.locks import stage_lock
from refine.system.processes import ProcessFailed, environment_of_command, run_in_own_process
from refine.tracking import registry, tags
from refine.tracking.champion import choose_champion
from refine.tracking.logged_checkpoints import log_checkpoints
from refine.tracking.registry import Version
from refine.tracking.relay import Relay
from refine.tracking.run import Run, find_run, open_run
from refine.tracking.run_inputs import log_inputs, prepared_files
from refine.tracking.system_metrics import system_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAMED = "model"  # phase of a stage that stands for a model which was trained elsewhere
RETRIES, DELAYS = 2, [5.0, 30.0]  # seconds before the second and the third attempt
REFINE = (sys.executable, "-m", "refine.cli.main")
EVALUATE = (sys.executable, "-m", "refine.phases.evaluation")
# Training and evaluation start as forks of one process that has imported what both need: a run imports it once.
FORKS: ForkServer | None = ForkServer(
    "torch", "transformers.trainer", "refine.phases.run", "refine.cli.train", "refine.evaluation.evaluate"
)


def prepare_forks() -> None:
    """Begin to import what training and evaluation need, while the flow still prepares itself."""
    if FORKS is not None and (variables := _variables_of_forks()) is not None:
        FORKS.prepare(environment_of_command(variables))


def forks(processes: int = 1) -> ForkServer | None:
    """What starts a training of so many processes, or an evaluation, as a fork; None where that cannot be: torchrun
    starts its processes itself."""
    able = FORKS is not None and FORKS.able and processes == 1 and _variables_of_forks() is not None
    return FORKS if able else None


def _variables_of_forks() -> dict[str, str] | None:
    """What restricts each fork to its device; None where forks are not safe. A GPU's driver does not come through a
    fork, and a library may start it while it is imported. Nor do threads, which numpy starts if it may have several."""
    shared = shared_variables()
    return shared if {**os.environ, **(shared or {})}.get(THREADS) == "1" else None


def worth_another_try(task: Any, task_run: Any, state: Any) -> bool:
    """Whether Prefect retries a failed task: yes, unless the user must correct something first."""
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
    """A task with retries, called `run_name` on Prefect's pages. Prefect does not store its result."""
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
    """Train one stage in its own process and record it. A second attempt resumes from the last complete checkpoint.

    model: the folder or hub name to start from; None in phase start.
    """
    with stage_lock(Path(stage.folder), stage.title, say):
        done = trained(stage, experiment.stages)
        known = find_run(experiment.client, experiment.experiment_id, stage.key)
        if done is not None and known is not None:
            say(f"{stage.title}: finished before, in {stage.folder}")
            return replace(done, run_id=known.info.run_id, reused=True)
        with recorded(experiment, stage) as recording:
            recording.result = done or train_in_own_process(experiment, stage, model)
        return replace(recording.result, run_id=recording.run_id)


@dataclass
class Recording:
    """What `recorded` yields. run_id: the MLflow run. result: the block sets it."""

    run_id: str
    result: Trained = field(init=False)


@contextlib.contextmanager
def recorded(experiment: Experiment, stage: Stage) -> Iterator[Recording]:
    """Open the MLflow run of a training, and relay its metrics to MLflow and to Prefect's page during the block. At the
    end of the block, log the result's totals, files and tags."""
    client, folder = experiment.client, Path(stage.folder)
    run = _open_run(experiment, stage, experiment.run_tags(stage.phase, stage.arm), experiment.settings_of(stage))
    recording = Recording(run.run_id)
    with run, ProgressArtifact(stage.title, _steps(experiment, stage)) as progress:
        data = experiment.stages.data
        log_inputs(client, run.run_id, prepared_files(data.folder, data.read_by(stage.phase)))
        with (
            Relay(folder / METRICS_FILE, client, run.run_id, seen=progress.show),
            system_metrics(client, run.run_id),
        ):
            yield recording
        result = recording.result
        run.metrics({"train/total_seconds": result.seconds, "train/total_tokens": result.tokens}, step=result.steps)
        _keep_files(client, run.run_id, folder)
        run.record(experiment.record(model=result.model, model_hash=result.model_hash, folder=stage.folder))


def _open_run(experiment: Experiment, stage: Stage, tags: dict[str, str], params: dict[str, Any]) -> Run:
    """The stage's run in MLflow, nested in the experiment's. A run that did not finish is opened again."""
    return open_run(
        experiment.client,
        experiment.experiment_id,
        stage.title,
        key=stage.key,
        parent=experiment.parent,
        tags=tags,
        params=params,
    )


def _steps(experiment: Experiment, stage: Stage) -> int:
    """Optimizer steps of a stage. Arm `none` takes none. A nested arm takes `prompt_steps` on prompts before each on
    answers."""
    if stage.arm == "none":
        return 0
    phase = getattr(experiment.settings.training, stage.phase)
    return int(phase.steps * (phase.prompt_steps + 1 if stage.arm.startswith("nested_") else 1))


def train_in_own_process(experiment: Experiment, stage: Stage, model: str | None) -> Trained:
    """Train a stage with `refine train`, on devices that no other task of this machine uses meanwhile.

    Raises ProcessFailed: the training failed or was killed. TrainingError: it left no result.
    """
    command, title = train_command(experiment, stage, model), stage.title
    with device_slots(experiment.settings.training.processes, title, say) as selected:
        run_in_own_process(
            command,
            echo=partial(relay, title=title),
            environment=selected,
            name=f"refine train {title}",
            forks=forks(experiment.settings.training.processes),
        )
    result = trained(stage, experiment.stages)
    if result is None:
        raise TrainingError(f"{title}: the training ended without a result in {stage.folder}")
    return result


def _keep_files(client: MlflowClient, run_id: str, folder: Path) -> None:
    """Log the reward histograms and the kept checkpoints of a stage to its MLflow run."""
    for name in (HISTOGRAM_TABLE, HISTOGRAM_PICTURE):
        if (folder / name).exists():
            client.log_artifact(run_id, str(folder / name))
    log_checkpoints(client, run_id, folder)


def train_command(experiment: Experiment, stage: Stage, model: str | None) -> list[str]:
    """The command line that trains a stage, with the settings of the experiment's start."""
    stages = experiment.stages
    command = [*REFINE, "train", stage.phase, "--output", stage.folder]
    command += ["--data", str(stages.data.folder), "--params", str(stages.frozen())]
    if model is not None:
        command += ["--arm", stage.arm, "--model", model]
        if revision := stages.revision(model):
            command += ["--revision", revision]
    return command


@_task("evaluate", "evaluation of {names}")
def evaluate(experiment: Experiment, targets: Sequence[Target], names: str) -> list[Scored]:
    """Score all targets on the same documents and prompts, in one process."""
    fresh = [not (Path(target.stage.folder) / EVALUATION_FILE).exists() for target in targets]
    if any(fresh):
        with temporary_folder("evaluation") as folder, device_slots(1, "evaluation", say) as selected:
            file = _request(experiment, targets).write(folder / "request.json")
            run_in_own_process([*EVALUATE, str(file)], echo=say, environment=selected, name="evaluation", forks=forks())
    else:
        say("evaluation: finished before")
    return [_recorded(experiment, *each) for each in zip(targets, fresh, strict=True)]


def _request(experiment: Experiment, targets: Sequence[Target]) -> Request:
    settings = experiment.settings
    return Request(
        data=experiment.stages.data.folder,
        batch_size=settings.evaluation.batch_size,
        seed=settings.seed,
        test_time=settings.training.test_time,
        models=tuple(
            ModelRequest(
                name=f"{target.phase} {target.arm}".strip(),
                model=target.model.model,
                output=Path(target.stage.folder),
                adapted_by=target.adapted_by,
            )
            for target in targets
        ),
    )


def _recorded(experiment: Experiment, target: Target, fresh: bool) -> Scored:
    """The scores in a stage's folder. Opens an MLflow run with them, if there is none yet."""
    client, stage, model = experiment.client, target.stage, target.model
    scores, seconds, scored_on = recorded_metrics(stage.folder)
    known = find_run(client, experiment.experiment_id, stage.key)
    run_id = known.info.run_id if known else ""
    metrics = {**({} if target.adapted_by else _validation(model)), **scores}
    if known is None:
        of_target = experiment.run_tags("test_time" if target.adapted_by else "evaluation", target.arm)
        # A model that was named, not trained here, is no row of this experiment's report.
        marks = of_target if model.stage.phase == NAMED else {**of_target, tags.TRAINED_BY: model.run_id}
        with _open_run(experiment, stage, marks, experiment.settings_of(model.stage)) as run:
            run.metrics(metrics, step=model.steps)
            for file in (EVALUATION_FILE, "table.md", "answers.jsonl"):
                if (Path(stage.folder) / file).exists():
                    client.log_artifact(run.run_id, str(Path(stage.folder) / file))
            run_id = run.run_id
    return Scored(target, scored_on or experiment.stages.scored_on(), run_id, not fresh, seconds, metrics)


def _validation(model: Trained) -> dict[str, float]:
    """The last validation of the training, which has the rewards too."""
    return {name: value for name, value in model.metrics.items() if name.startswith("val/")}


@_task("register", "registration of {scored.target.phase} {scored.target.arm}")
def register(experiment: Experiment, scored: Scored) -> Version:
    """Register a trained and scored model as a version of registry.model_name."""
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
    """The metrics that MLflow's registry shows as tags, which have little room: those of the headline table's columns,
    but for means over several, and the one that chooses the champion."""
    single = [one.metrics[0] for one in headline.columns(scored.metrics) if len(one.metrics) == 1]
    return list(dict.fromkeys([metric, *single]))


@_task("choose the champion", "champion by {metric}")
def champion(experiment: Experiment, among: Sequence[Version], metric: str) -> Version:
    """Give the alias `champion` to the best version."""
    settings = experiment.settings.registry
    best = choose_champion(experiment.client, settings.model_name, among, metric, settings.goal)
    say(f"champion: {best.name} version {best.label}, {metric} {best.metrics[metric]:.4f}")
    return best
