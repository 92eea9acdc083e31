"""Flows for a single step: train one arm of one phase, or evaluate one model."""

from __future__ import annotations

import time
from typing import Any, Literal

from prefect import flow
from prefect.runtime import flow_run

from flows import artifacts, preflight, run_names, tasks
from flows import experiment as opened
from flows.experiment import Experiment
from refine.errors import SettingError
from refine.phases.stages import Stage, Trained
from refine.services.flow_heartbeat import start_heartbeat
from refine.settings import Settings, load
from refine.system.names import check_name
from refine.tracking import references, registered_folders, registry
from refine.tracking.connection import connect
from refine.tracking.evaluation_record import is_own, replace_scores
from refine.tracking.run import open_run


def _run_name() -> str:
    given = flow_run.parameters
    name = f"{given['phase']} {given.get('arm') or ''}".strip() if "phase" in given else f"evaluation {given['model']}"
    return f"{name} {time.strftime('%Y-%m-%d %H:%M')}"


@flow(name="refine-phase", flow_run_name=_run_name, persist_result=False)
def refine_phase(
    phase: Literal["start", "mid", "post"],
    arm: str | None = None,
    model: str | None = None,
    params: str = "params.yaml",
    overrides: list[str] | None = None,
    experiment: str | None = None,
) -> dict[str, Any]:
    """Train one arm of one phase, evaluate the model and register it as a version.

    Args:
        phase: phase to train
        arm: none, sft, refine or focus in phase mid; sft, nested_sft, nested_refine or nested_focus in phase post; or a
            variant in the settings; no arm in phase start
        model: starting model, a folder, a hub name or models:/NAME@ALIAS; no model in phase start
        params: settings file, relative to the checkout
        overrides: settings that replace those of the file, as in training.mid.steps=100
        experiment: MLflow experiment; default: registry.model_name
    """
    start_heartbeat()
    check_name(experiment, "an experiment")
    settings = load(params, overrides or ())
    arm = check_arm(settings, phase, arm, model)
    preflight.check(settings)
    client = connect()
    this = opened.open_experiment(settings, experiment, client)
    title = f"{phase} {arm}".strip()
    name = run_names.titled(f"{this.name}: {title}", run_names.what_differs(settings, params, overrides))
    with open_run(client, this.experiment_id, name, tags=this.run_tags("experiment")) as run:
        this = opened.open_experiment(settings, experiment, client, run.run_id)
        artifacts.link(this)
        start = None if model is None else registered_folders.local(model)
        stage = _stage(this, phase, arm, start)
        trained = tasks.train(this, stage, start)
        (scored,) = tasks.evaluate(this, [this.stages.evaluation(trained)], title)
        version = tasks.register(this, scored)
    return {"model": trained.model, "version": version.number, "mlflow_run": trained.run_id}


@flow(name="refine-evaluation", flow_run_name=_run_name, persist_result=False)
def refine_evaluation(
    model: str, params: str = "params.yaml", overrides: list[str] | None = None, experiment: str | None = None
) -> dict[str, Any]:
    """Score a model on all prepared documents and prompts. A registered version gets the scores.

    Args:
        model: a folder, a hub name or models:/NAME@ALIAS
        params: settings file, relative to the checkout
        overrides: settings that replace those of the file, as in evaluation.batch_size=4
        experiment: MLflow experiment; default: registry.model_name
    """
    start_heartbeat()
    check_name(experiment, "an experiment")
    settings = load(params, overrides or ())
    preflight.check(settings)
    client = connect()
    model = registered_folders.pinned(model)  # an alias may move while the model is scored
    this = opened.open_experiment(settings, experiment, client)
    with open_run(client, this.experiment_id, f"evaluation {model}", tags=this.run_tags("experiment")) as run:
        this = opened.open_experiment(settings, experiment, client, run.run_id)
        artifacts.link(this)
        folder = registered_folders.local(model)
        stage = Stage(tasks.NAMED, model.removeprefix("models:/").replace("/", " ").replace("@", " "), "", folder)
        given = Trained(stage, folder, this.stages.model_hash(folder), run_id=run.run_id)
        (scored,) = tasks.evaluate(this, [this.stages.evaluation(given)], model)
        if references.is_reference(model):
            version = registry.version_of(client, *references.parse_reference(model))
            if is_own(version, scored.scored_on, complete=True):
                replace_scores(client, version, scored.metrics, scored.scored_on, scored.run_id)
            else:
                registry.add_metrics(client, version, scored.metrics)
    return {"model": model, "mlflow_run": scored.run_id, "metrics": dict(scored.metrics)}


def check_arm(settings: Settings, phase: str, arm: str | None, model: str | None) -> str:
    """The arm of a phase, "" in phase start.

    Raises SettingError: the phase has no such arm, needs a model, or takes none.
    """
    if phase == "start":
        if model is not None:
            raise SettingError("phase start trains a new model: leave model out, or choose phase mid")
        return ""
    section = getattr(settings.training, phase)
    if section is None:
        raise SettingError(f"training.{phase} is null: phase {phase} needs its settings")
    section.check_arm(arm)
    if not model:
        raise SettingError(f"phase {phase} starts from a model: name a folder, a hub name or models:/NAME@ALIAS")
    return str(arm)


def _stage(this: Experiment, phase: str, arm: str, model: str | None) -> Stage:
    if model is None:
        return this.stages.start()
    return this.stages.mid(arm, model) if phase == "mid" else this.stages.post(arm, model)
