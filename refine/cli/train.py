"""`refine train`: one arm of one phase into one folder. Started again, it resumes; a finished run is left as it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refine import paths
from refine.cli import options
from refine.settings.arms import OWN_ARMS

if TYPE_CHECKING:
    from refine.phases.plan import Plan
    from refine.settings import CommonSettings

VALIDATED = {
    "val/loss": "loss",
    "val/accuracy": "accuracy",
    "val/answer_loss": "loss of the answers",
    "val/prompts/loss": "loss of the prompts",
}


def common(command: Any) -> Any:
    """The options of every phase."""
    command = click.option(
        "--record",
        "record_as",
        metavar="NAME",
        callback=options.model_name,
        help="At the end, make the model a version of the registered model NAME, as `refine register` does.",
    )(command)
    return options.output()(options.data(paths.prepared())(options.settings()(command)))


@click.group()
def train() -> None:
    """Train one arm of one phase. Started again, a run resumes."""
    from refine.system.processes import die_with_parent

    die_with_parent()


def arm_and_model(phase: str) -> Callable[[Any], Any]:
    """The options of a phase that trains an existing model in one of several arms."""

    def decorate(command: Any) -> Any:
        command = click.option("--revision", help="Branch, tag or commit of a hub model.")(command)
        command = click.option(
            "--model",
            required=True,
            metavar="FOLDER|NAME",
            help="Starting model: a checkpoint folder, a hub name, a shipped model or models:/NAME@ALIAS.",
        )(command)
        arms = f"Arm to train: {', '.join(OWN_ARMS[phase])}, or one of training.{phase}.variants."
        return click.option("--arm", required=True, metavar="ARM", help=arms)(command)

    return decorate


@train.command()
@common
def start(output: Path, data: Path, params: Path, overrides: tuple[str, ...], record_as: str | None) -> None:
    """Next-token training of a new model (params: model.config, training.start)."""
    from refine import settings
    from refine.phases import start
    from refine.phases.prepared_data import Prepared

    values = settings.load(params, overrides)
    plan = start.plan(values, Prepared(data))
    _run(plan, values, output, f"refine train mid --arm refine --model {output / 'model'} --output OUTPUT", record_as)


@train.command()
@arm_and_model("mid")
@common
def mid(
    arm: str,
    model: str,
    revision: str | None,
    output: Path,
    data: Path,
    params: Path,
    overrides: tuple[str, ...],
    record_as: str | None,
) -> None:
    """Mid-training on long documents (params: training.mid)."""
    from refine import settings
    from refine.phases import mid
    from refine.phases.prepared_data import Prepared
    from refine.tracking.registered_folders import local

    values = settings.load(params, overrides)
    plan = mid.plan(values, arm, local(model), Prepared(data), revision)
    _run(plan, values, output, f"refine evaluate {output / 'model'}", record_as)


@train.command()
@arm_and_model("post")
@click.option(
    "--prompts",
    multiple=True,
    type=options.PATH,
    help="File of prompts and answers; repeatable (default: DATA/questions).",
)
@click.option(
    "--validation", multiple=True, type=options.PATH, help="File of held-out prompts and answers; repeatable."
)
@common
def post(
    arm: str,
    model: str,
    revision: str | None,
    prompts: tuple[Path, ...],
    validation: tuple[Path, ...],
    output: Path,
    data: Path,
    params: Path,
    overrides: tuple[str, ...],
    record_as: str | None,
) -> None:
    """Post-training on prompts with answers (params: training.post)."""
    from refine import settings
    from refine.phases import post
    from refine.phases.prepared_data import Prepared
    from refine.tracking.registered_folders import local

    values, prepared = settings.load(params, overrides), Prepared(data)
    if not prompts:
        prompts, validation = tuple(prepared.questions("train")), validation or tuple(prepared.questions("validation"))
    plan = post.plan(values, arm, local(model), prepared, prompts, validation, revision)
    _run(plan, values, output, f"refine evaluate {output / 'model'}", record_as)


@train.command()
@options.output()
@options.settings()
def tiny(output: Path, params: Path, overrides: tuple[str, ...]) -> None:
    """Rehearse all phases of a settings file with a tiny random model and made-up text."""
    from refine import settings
    from refine.phases.rehearsal import rehearse

    rehearse(settings.load(params, overrides), output, click.echo)
    click.echo(f"wrote {output}: every phase of {params} runs")


def become_processes(values: CommonSettings) -> None:
    """Replace this command by training.processes processes of itself, or return if it is one of them already."""
    from refine.training.torchrun import become

    become(values.training.processes, sys.argv[1:])


def _run(plan: Plan, values: CommonSettings, output: Path, following: str, record_as: str | None) -> None:
    """Run `plan` into `output` and print what it wrote. following: the command that comes next. record_as: registered
    model to make a version of."""
    import logging

    from refine.phases import run_folder
    from refine.training.torchrun import is_first

    run_folder.check(output, plan.identity)
    if record_as is not None:
        from refine.tracking.connection import check_answers, tracking_uri

        check_answers(tracking_uri())
    become_processes(values)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    finished_before = run_folder.finished(output) is not None
    record = plan.run(output)
    if not is_first():
        return
    if finished_before:
        click.echo(f"{output} is finished: nothing to do")
    _print_result(record, output)
    if record_as is not None:
        from refine.cli.register import record_version, say_registered

        say_registered(record_version(output / run_folder.MODEL, record, record_as))
        return
    click.echo(f"next: {following}")


def _print_result(record: dict[str, Any], output: Path) -> None:
    from refine.metric_names import HISTOGRAM_PICTURE, METRICS_FILE

    metrics = record["metrics"]
    scores = [f"validation {name} {metrics[key]:.4f}" for key, name in VALIDATED.items() if key in metrics]
    steps = "1 step" if record["steps"] == 1 else f"{record['steps']} steps"
    done = f"{steps}, {record['tokens']:,} tokens in {record['seconds']:.0f} s"
    click.echo("; ".join([f"{record['phase']} {record['arm']}: {done}", *scores]))
    click.echo(f"wrote {output / 'model'} (model and tokenizer), {output / 'result.json'}, {output / METRICS_FILE}")
    if (picture := output / HISTOGRAM_PICTURE).exists():
        click.echo(f"wrote {picture} (distribution of the rewards on held-out text)")
