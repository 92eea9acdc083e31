"""Single phases as flows of their own: train one arm of one phase, or evaluate one model."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field

from flows import experiment as opened
from flows import tasks
from flows.experiment import Experiment
from flows.records import Stage, Trained
from refine import paths
from refine.errors import SettingError, nearest
from refine.services.orphans import end_with_worker
from refine.tracking import registry
from refine.tracking.connection import connect
from refine.tracking.run import open_run

ARMS = {
    "start": ("",),
    "mid": ("none", "sft", "refine"),
    "post": ("sft", "nested_sft", "nested_refine"),
}
PARAMS = Field(description="settings file, relative to the checkout")
OVERRIDES = Field(description="settings laid over the file, as in training.mid.steps=100")
EXPERIMENT = Field(description="MLflow experiment; default: registry.model_name")


def _run_name() -> str:
    given = flow_run.parameters
    what = f"{given['phase']} {given.get('arm') or ''}".strip() if "phase" in given else f"evaluation {given['model']}"
    return f"{what} {time.strftime('%Y-%m-%d %H:%M')}"


@flow(name="refine-phase", flow_run_name=_run_name, persist_result=False)
def refine_phase(
    phase: Annotated[Literal["start", "mid", "post"], Field(description="which phase is trained")],
    arm: Annotated[str | None, Field(description="none, sft, refine; sft, nested_sft, nested_refine in post")] = None,
    model: Annotated[str | None, Field(description="folder, hub name or models:/NAME@ALIAS to start from")] = None,
    params: Annotated[str, PARAMS] = "params.yaml",
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    experiment: Annotated[str | None, EXPERIMENT] = None,
) -> dict[str, Any]:
    """Train one arm of one phase, evaluate it and register it as a version."""
    end_with_worker()
    settings = opened.load(params, tuple(overrides or ()))
    arm = check_arm(phase, arm, model)
    opened.check(settings)
    client = connect()
    this = opened.open_experiment(settings, experiment, client)
    title = f"{phase} {arm}".strip()
    with open_run(client, this.experiment_id, f"{this.name}: {title}", tags=this.tags("experiment")) as run:
        this = opened.open_experiment(settings, experiment, client, run.run_id)
        start = None if model is None else local_model(this, model)
        stage = _stage(this, phase, arm, start)
        trained = tasks.train(this, stage, start)
        (scored,) = tasks.evaluate(this, [this.stages.evaluation(trained)], title)
        version = tasks.register(this, scored)
    return {"model": trained.model, "version": version.number, "mlflow_run": trained.run_id}


@flow(name="refine-evaluation", flow_run_name=_run_name, persist_result=False)
def refine_evaluation(
    model: Annotated[str, Field(description="folder, hub name or models:/NAME@ALIAS to evaluate")],
    params: Annotated[str, PARAMS] = "params.yaml",
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    experiment: Annotated[str | None, EXPERIMENT] = None,
) -> dict[str, Any]:
    """Score a model on everything that is prepared; the scores join those of a registered version."""
    end_with_worker()
    settings = opened.load(params, tuple(overrides or ()))
    opened.check(settings)
    client = connect()
    this = opened.open_experiment(settings, experiment, client)
    with open_run(client, this.experiment_id, f"evaluation {model}", tags=this.tags("experiment")) as run:
        this = opened.open_experiment(settings, experiment, client, run.run_id)
        folder = local_model(this, model)
        stage = Stage("model", model.removeprefix("models:/").replace("/", " ").replace("@", " "), "", folder)
        given = Trained(stage, folder, this.stages.model_hash(folder), run_id=run.run_id)
        (scored,) = tasks.evaluate(this, [this.stages.evaluation(given)], model)
        if model.startswith("models:/"):
            version = registry.version_of(client, *registry.parse_reference(model))
            registry.add_metrics(client, version, scored.metrics)
    return {"model": model, "mlflow_run": scored.run_id, "metrics": dict(scored.metrics)}


def check_arm(phase: str, arm: str | None, model: str | None) -> str:
    """The arm of a phase. Raises SettingError: another phase's arm, or a model where none belongs or none is given."""
    if phase == "start":
        if model is not None:
            raise SettingError("phase start trains a new model: give no model, or choose phase mid")
        return ""
    if arm not in ARMS[phase]:
        raise SettingError(
            f"phase {phase} has no arm {arm!r}{nearest(str(arm), ARMS[phase])}; it has {', '.join(ARMS[phase])}"
        )
    if not model:
        raise SettingError(f"phase {phase} starts from a model: name a folder, a hub name or models:/NAME@ALIAS")
    return arm


def local_model(this: Experiment, model: str) -> str:
    """`model` itself, or the folder that a registered version was copied to."""
    if not model.startswith("models:/"):
        return model
    version = registry.version_of(this.client, *registry.parse_reference(model))
    folder = paths.runs() / "registered" / f"{version.name}-{version.number}"
    if not (folder / "config.json").exists():
        registry.fetch(this.client, version, folder)
    return str(folder)


def _stage(this: Experiment, phase: str, arm: str, model: str | None) -> Stage:
    if model is None:
        return this.stages.start()
    return this.stages.mid(arm, model) if phase == "mid" else this.stages.post(arm, model)
