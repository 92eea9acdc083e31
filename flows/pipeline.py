"""The experiment as one Prefect flow. `python -m flows.pipeline` runs it here; a deployment runs it on a worker.

starting model -> mid-training -> post-training -> evaluation of all models, and of the last one with test-time training
-> registry -> champion and comparison. The arms of a phase train side by side where there are devices for it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
from prefect import flow
from prefect.runtime import flow_run

from flows import artifacts, preflight, run_names, tasks
from flows import experiment as opened
from flows.experiment import Experiment
from flows.progress import say
from flows.side_by_side import Call, Crew
from refine import paths
from refine.data.corpus import dvc_stages
from refine.errors import SettingError, nearest
from refine.metric_names import METRICS_FILE, smaller_is_better
from refine.phases.stages import Scored, Stage, Target, Trained
from refine.reports import arms, experiment_files
from refine.reports.comparison import compare
from refine.reports.headline import headline, values_of
from refine.services import notifications, prefect_api
from refine.services.flow_heartbeat import start_heartbeat
from refine.settings import load
from refine.settings.training import BEST, MidSettings, PostSettings
from refine.system.leftovers import sweep
from refine.system.names import check_name
from refine.system.one_line_errors import one_line_errors
from refine.system.processes import die_with_dvc
from refine.tracking.champion import champion_of
from refine.tracking.connection import connect
from refine.tracking.registered_folders import local
from refine.tracking.registry import Version, version_of
from refine.tracking.run import Run, end_dead_runs, open_run
from refine.tracking.run_inputs import log_inputs, raw_texts
from refine.tracking.tags import CHAMPION, DESCRIPTION


def _run_name() -> str:
    given = flow_run.parameters
    name = run_names.name_with_overrides(given.get("experiment") or "experiment", given.get("overrides"))
    return f"{name} {time.strftime('%Y-%m-%d %H:%M')}"


@flow(name="refine-experiment", flow_run_name=_run_name, persist_result=False)
def refine_experiment(
    params: str = "params.yaml",
    overrides: list[str] | None = None,
    experiment: str | None = None,
    prepare: bool = False,
) -> dict[str, Any]:
    """Train every phase in its arms, evaluate, register, choose the champion, and compare.

    Args:
        params: settings file, relative to the checkout
        overrides: settings that replace those of the file, as in training.mid.steps=100
        experiment: MLflow experiment; default: registry.model_name
        prepare: run the data stages first (dvc repro)
    """
    start_heartbeat()
    check_name(experiment, "an experiment")
    settings = load(params, overrides or ())
    if prepare:
        dvc_stages.prepare(params, settings, say)
    preflight.check(settings)
    tasks.prepare_forks()
    client = connect()
    this = opened.open_experiment(settings, experiment, client)
    for folder in (paths.runs(), paths.results(), paths.results() / experiment_files.METRICS):
        sweep(folder, "evaluate-*.json")  # a file of earlier versions
    end_dead_runs(client, [this.experiment_id])
    values, differing = settings.model_dump(mode="json"), run_names.what_differs(settings, params, overrides)
    with open_run(
        client,
        this.experiment_id,
        run_names.titled(_title(this), differing),
        key=_flow_run_key(),
        tags=this.run_tags("experiment"),
        params=values,
    ) as run:
        log_inputs(client, run.run_id, raw_texts(values["data"]))
        this = opened.open_experiment(settings, experiment, client, run.run_id)
        artifacts.link(this)
        with Crew() as crew:
            models, noted = _trained(this, crew)
            scores = _scored(this, crew, _targets(this, models), noted)
        versions, best = _registered(this, scores)
        run.record(this.record(settings=values, differing=differing, reused=_reused(models)))
        return _finish(this, run, models, scores, versions, best)


def _trained(this: Experiment, crew: Crew) -> tuple[list[Trained], dict[str, Call]]:
    """Train all arms of mid-training, then all arms of post-training if the settings have it. Returns the models, and
    the evaluations that were begun on devices which would have been idle meanwhile, by the keys of their stages."""
    training, noted = this.settings.training, dict[str, Call]()
    start = this.settings.model.checkpoint
    # An alias is looked up once, so that all arms start from the same version.
    start = tasks.train(this, this.stages.start()).model if start is None else local(start)

    def train(stages: list[Stage], model: str) -> list[Trained]:
        calls = [{"experiment": this, "stage": stage, "model": model} for stage in stages]
        return crew.run(tasks.train, calls, training.processes, evaluate if tasks.forks() else None)

    def evaluate(model: Trained) -> None:
        target = this.stages.evaluation(model)
        noted[target.stage.key] = crew.later(tasks.evaluate, _evaluation(this, [target]))

    models = train([this.stages.mid(arm, start) for arm in training.mid.arms], start)
    if training.post is not None:
        middle = chosen(models, training.mid).model
        models += train([this.stages.post(arm, middle) for arm in training.post.arms], middle)
    return models, noted


def _evaluation(this: Experiment, targets: list[Target]) -> dict[str, Any]:
    """The arguments of the task `evaluate`."""
    return {
        "experiment": this,
        "targets": targets,
        "names": ", ".join(f"{target.phase} {target.arm}" for target in targets),
    }


def chosen(models: list[Trained], phase: MidSettings | PostSettings) -> Trained:
    """The model that goes on to the next phase: the one of arm `continue_with`, or the last one if that arm was not
    trained; with `best`, the one with the best `best_by` at the end of its training.

    Raises SettingError: `best`, but a model has no such metric."""
    own = [model for model in models if model.stage.phase == phase.phase()]
    if phase.continue_with != BEST:
        return next((model for model in own if model.stage.arm == phase.continue_with), own[-1])
    metric = phase.best_by
    if lacking := [model for model in own if metric not in model.metrics]:
        known = [name for name in lacking[0].metrics if not name.startswith("train/")]
        raise SettingError(
            f"training.{phase.phase()}.best_by: {lacking[0].stage.title} has no metric {metric!r}"
            f"{nearest(metric, known)}; it has {', '.join(known)}"
        )
    return (min if smaller_is_better(metric) else max)(own, key=lambda model: model.metrics[metric])


def _targets(this: Experiment, models: list[Trained]) -> list[Target]:
    """Every model as it is, and the last phase's model with each arm of test-time training."""
    stages, training = this.stages, this.settings.training
    targets = [stages.evaluation(model) for model in models]
    if training.test_time is not None:
        last = chosen(models, training.post or training.mid)
        targets += [stages.evaluation(last, arm) for arm in training.test_time.arms if arm != "none"]
    return targets


def _scored(this: Experiment, crew: Crew, targets: list[Target], noted: dict[str, Call]) -> list[Scored]:
    """Score all targets. Forks start at once, so each target is a call of its own. Otherwise there are as many
    processes as devices, each for an equal share, since a process imports torch and reads documents and prompts once.

    noted: the calls that `_trained` noted."""
    if noted or tasks.forks():  # noted ones are done so, even if forks have failed since
        for target in targets:
            if target.stage.key not in noted:
                noted[target.stage.key] = crew.later(tasks.evaluate, _evaluation(this, [target]))
        crew.finish()
        return [noted[target.stage.key].result[0] for target in targets]
    shares = min(crew.at_once(), len(targets))
    taken = [targets[share::shares] for share in range(shares)]
    found = crew.run(tasks.evaluate, [_evaluation(this, share) for share in taken])
    return [found[n % shares][n // shares] for n in range(len(targets))]


def _registered(this: Experiment, scores: list[Scored]) -> tuple[list[Version], Version]:
    """Register all scored models, and choose the champion."""
    versions = [tasks.register(this, score) for score in scores if not score.target.adapted_by]
    before = champion_of(this.client, this.settings.registry.model_name)
    best = tasks.champion(this, versions, this.settings.registry.metric)
    notifications.champion_changed(before, best)
    return versions, best


def _finish(
    this: Experiment, run: Run, models: list[Trained], scores: list[Scored], versions: list[Version], best: Version
) -> dict[str, Any]:
    """Write and show the comparison, and each arm's headline scores as metrics of the experiment's run, so that the
    runs of many nights make a trend. Returns the flow's result, a small record of where everything lies."""
    settings, run_id = this.settings.registry, run.run_id
    current = [version_of(this.client, settings.model_name, str(version.number)) for version in versions]
    comparison = compare(current)
    shown = [*arms.of_versions(this.client, comparison), *arms.of_test_time(this.client, scores)]
    files = experiment_files.write(
        comparison, shown, opened.results_folder(run_id), settings.metric, _metrics_files(models)
    )
    for file in files:
        this.client.log_artifact(run_id, str(file), "results")
    run.metrics(values_of(headline(shown)))
    run.tag({CHAMPION: f"{best.name} version {best.label}", DESCRIPTION: artifacts.description(this, best, files)})
    artifacts.publish(this, comparison, best, files)
    return {
        "experiment": this.name,
        "mlflow_run": run_id,
        "versions": {f"{version.phase} {version.arm}": version.number for version in current},
        "champion": best.number,
        "files": [str(file) for file in files],
        "identity": this.identity.tags(),
    }


def _metrics_files(models: list[Trained]) -> dict[str, dict[str, Path]]:
    """The metrics.jsonl of each training, by phase and arm."""
    found: dict[str, dict[str, Path]] = {}
    for model in models:
        found.setdefault(model.stage.phase, {})[model.stage.arm] = Path(model.stage.folder) / METRICS_FILE
    return found


def _reused(models: list[Trained]) -> dict[str, str]:
    """The MLflow runs of stages that were finished before."""
    return {model.stage.title: model.run_id for model in models if model.reused}


def _title(this: Experiment) -> str:
    return f"{this.name}: {', '.join(this.settings.training.mid.arms)}"


def _flow_run_key() -> str | None:
    """The key by which a retried Prefect run finds its MLflow run again."""
    return f"flow-run-{flow_run.id}" if flow_run.id else None


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--params", default="params.yaml", show_default=True, help="Settings file.")
@click.option("-S", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a setting.")
@click.option("--experiment", default=None, help="MLflow experiment (default: registry.model_name).")
def main(params: str, overrides: tuple[str, ...], experiment: str | None) -> None:
    """Run the experiment here. Uses Prefect's server if one runs, else a temporary one."""
    check_name(experiment, "an experiment")
    preflight.check(load(params, overrides))
    with prefect_api.prefect_api() as url:
        tasks.prepare_forks()
        connect()  # MLflow's database opens while the server starts
        prefect_api.wait_until_ready(url)
        refine_experiment(params, list(overrides), experiment)


def run(arguments: list[str] | None = None) -> None:
    """`main`; an error that the user can correct ends it with one line and exit code 1."""
    die_with_dvc()
    with one_line_errors():
        main.main(args=arguments, prog_name="python -m flows.pipeline")


if __name__ == "__main__":
    run()
