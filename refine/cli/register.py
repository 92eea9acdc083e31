"""`refine register`: a model that a person trained by hand becomes a version in MLflow's registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refine.cli import options
from refine.errors import ModelError

if TYPE_CHECKING:
    from refine.tracking.registry import Version


@click.command()
@click.argument("folder", type=options.PATH)
@click.option("--name", required=True, callback=options.model_name, help="Registered model to make a version of.")
def register(folder: Path, name: str) -> None:
    """Make FOLDER a version of a registered model: a run folder of `refine train`, or any model folder.

    The version has no scores yet, unless the run folder's last validation gives some: `refine evaluate` adds them. The
    same model is registered once. Its code and data are those that the run folder names; of a model folder they are
    unknown, so that `refine promote` refuses it.
    """
    model, record = model_and_record(folder)
    say_registered(record_version(model, record, name))


def model_and_record(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The model folder and the record of a run folder; of a model folder itself and an empty record.

    Raises ModelError: neither of the two, a run that has not finished, weights that do not fit config.json or are not
    finite, or a tokenizer that does not fit the model.
    """
    from refine.evaluation.evaluate import check_model, model_tokenizer
    from refine.models import from_pretrained
    from refine.models.weights import refuse_adapters
    from refine.phases import run_folder
    from refine.system.quiet import quiet_libraries

    record: dict[str, Any] = {}
    model = folder
    if (folder / run_folder.IDENTITY).is_file():
        found = run_folder.finished(folder)
        if found is None:
            raise ModelError(f"{folder}: this run has not finished: start its command again, it resumes")
        record, model = found, folder / run_folder.MODEL
    if not (model / "config.json").is_file():
        refuse_adapters(model)
        raise ModelError(f"{folder}: expected a run folder of `refine train`, or a model folder with config.json")
    quiet_libraries()
    check_model(model, model_tokenizer(model))
    from_pretrained(model)
    return model, record


def record_version(model: Path, record: dict[str, Any], name: str) -> Version:
    """Record the training in an MLflow run of the experiment `name`, and the model as a version of `name`."""
    from refine.identity import UNKNOWN, flat, hash_of
    from refine.metric_names import METRICS_FILE
    from refine.phases.prepared_data import model_identity
    from refine.tracking import registry, tags
    from refine.tracking.connection import connect, experiment_id
    from refine.tracking.run import find_run, open_run

    client = connect()
    made_by = {"commit": UNKNOWN, "dirty": True, "data": UNKNOWN, "code": UNKNOWN} | (record.get("origin") or {})
    phase, arm = str(record.get("phase", "")), str(record.get("arm", ""))
    settings = {**flat(record.get("settings") or {}, "training."), **({"arm": arm} if arm else {})}
    origin = {
        tags.COMMIT: made_by["commit"],
        tags.DIRTY: str(made_by["dirty"]).lower(),
        tags.DATA: made_by["data"],
        tags.CODE: made_by["code"],
        tags.SEED: str(record.get("seed", 0)),
        tags.PARAMS: hash_of(settings),
    }
    shown = {tags.PHASE: phase, tags.ARM: arm, tags.EXPERIMENT: name}
    key = hash_of([name, model_identity(str(model), None)])
    into = experiment_id(client, name)
    found = find_run(client, into, key)
    marks = {tag: value for tag, value in {**shown, **origin}.items() if value}
    metrics = {one: value for one, value in (record.get("metrics") or {}).items() if one.startswith("val/")}
    title = f"{phase} {arm}".strip() or model.name
    if found is None:
        with open_run(client, into, title, key=key, tags=marks, params=settings) as run:
            _send(client, run.run_id, model.parent / METRICS_FILE if record else None)
        run_id = run.run_id
    else:
        run_id = found.info.run_id
    model_hash = hash_of(model_identity(str(model), None))
    return registry.register(
        client,
        name,
        model,
        key=key,
        run_id=run_id,
        experiment_id=into,
        metrics=metrics,
        settings=settings,
        tags={**marks, tags.MODEL_HASH: model_hash},
    )


def _send(client: Any, run_id: str, metrics_file: Path | None) -> None:
    """Log the curves of a finished training to its run."""
    if metrics_file is None:
        return
    from refine.tracking.relay import MetricsReader
    from refine.tracking.sender import Sender

    reader = MetricsReader(metrics_file)
    Sender(client, run_id).send(reader.new_rows())
    reader.close()


def say_registered(version: Version) -> None:
    """Print what was registered and what comes next."""
    click.echo(f"registered: {version.name} version {version.label}")
    click.echo(f"next: refine evaluate models:/{version.name}/{version.number}")
    click.echo(f"then: refine compare --model {version.name} --versions all")
