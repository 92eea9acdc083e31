"""`refine train`: one arm of one phase into one folder. Started again it resumes; finished, it does nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refine import paths
from refine.cli import options

if TYPE_CHECKING:
    from refine.settings import CommonSettings


def common(command: Any) -> Any:
    """The options that every phase has."""
    return options.output()(options.data(paths.prepared())(options.settings()(command)))


@click.group()
def train() -> None:
    """Train one arm of one phase; started again, it resumes."""
    from refine.system.processes import die_with_parent

    die_with_parent()


@train.command()
@common
def start(output: Path, data: Path | None, params: Path, overrides: tuple[str, ...]) -> None:
    """Next-token training of a new model (params: model.config, training.start)."""
    from refine import settings
    from refine.phases.prepared_data import Prepared
    from refine.phases.start import start_training

    values = settings.load(params, overrides)
    prepared, once_checked = Prepared(data or paths.prepared()), launch(values)
    record = _reported(lambda: start_training(values, prepared, output, once_checked=once_checked), output)
    _say(record, output, f"refine train mid --arm refine --model {output / 'model'} --output OUTPUT")


@train.command()
@click.option("--arm", required=True, type=click.Choice(["none", "sft", "refine"]), help="What is trained by.")
@click.option(
    "--model", required=True, metavar="FOLDER|NAME", help="The starting model: a checkpoint folder or hub name."
)
@click.option("--revision", default=None, help="Branch, tag or commit of a hub name.")
@common
def mid(arm: str, model: str, revision: str | None, output: Path, data: Path | None, params: Path,
        overrides: tuple[str, ...]) -> None:  # fmt: skip
    """Mid-training on long documents (params: training.mid)."""
    from refine import settings
    from refine.phases.mid import mid_training
    from refine.phases.prepared_data import Prepared

    values = settings.load(params, overrides)
    prepared, once_checked = Prepared(data or paths.prepared()), launch(values)

    def run() -> dict[str, Any]:
        return mid_training(values, arm, model, prepared, output, revision, once_checked=once_checked)

    record = _reported(run, output)
    _say(record, output, f"refine evaluate {output / 'model'}")


@train.command()
@click.option(
    "--arm", required=True, type=click.Choice(["sft", "nested_sft", "nested_refine"]), help="What is trained by."
)
@click.option(
    "--model", required=True, metavar="FOLDER|NAME", help="The starting model: a checkpoint folder or hub name."
)
@click.option("--revision", default=None, help="Branch, tag or commit of a hub name.")
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
def post(arm: str, model: str, revision: str | None, prompts: tuple[Path, ...], validation: tuple[Path, ...],
         output: Path, data: Path | None, params: Path, overrides: tuple[str, ...]) -> None:  # fmt: skip
    """Post-training on prompts with answers (params: training.post)."""
    from refine import settings
    from refine.phases.post import post_training
    from refine.phases.prepared_data import Prepared

    values = settings.load(params, overrides)
    prepared, once_checked = Prepared(data or paths.prepared()), launch(values)
    if not prompts:
        prompts, validation = tuple(prepared.questions("train")), validation or tuple(prepared.questions("validation"))

    def run() -> dict[str, Any]:
        return post_training(
            values, arm, model, prepared, prompts, output, validation, revision, once_checked=once_checked
        )

    _say(_reported(run, output), output, f"refine evaluate {output / 'model'}")


@train.command()
@options.output()
@options.settings()
def tiny(output: Path, params: Path, overrides: tuple[str, ...]) -> None:
    """Rehearse all phases of a settings file on a tiny random model and made-up text."""
    from refine import settings
    from refine.phases.rehearsal import rehearse

    rehearse(settings.load(params, overrides), output, click.echo)
    click.echo(f"wrote {output}: every phase of {params} runs")


def launch(values: CommonSettings) -> Callable[[], None]:
    """What to do once all is checked: go on as several processes, where training.processes asks for them."""
    from refine.training.torchrun import become

    return lambda: become(values.training.processes, sys.argv[1:])


def _reported(run: Any, output: Path) -> dict[str, Any]:
    """`run()`, quietly; says so where there is nothing left to do."""
    import logging

    from refine.phases.run_folder import finished
    from refine.training.torchrun import is_first

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    before = finished(output)
    record = run()
    if before is not None and is_first():
        click.echo(f"{output} is finished: nothing to do")
    return record


def _say(record: dict[str, Any], output: Path, following: str) -> None:
    from refine.training.reward_histograms import HISTOGRAM_PICTURE
    from refine.training.torchrun import is_first

    if not is_first():
        return
    metrics = record["metrics"]
    told = [
        f"validation {name} {metrics[key]:.4f}"
        for name, key in (("loss", "val/loss"), ("accuracy", "val/accuracy"), ("answer loss", "val/answer_loss"))
        if key in metrics
    ]
    steps = "1 step" if record["steps"] == 1 else f"{record['steps']} steps"
    done = f"{steps}, {record['tokens']:,} tokens in {record['seconds']:.0f} s"
    click.echo("; ".join([f"{record['phase']} {record['arm']}: {done}", *told]))
    click.echo(f"wrote {output / 'model'} (model and tokenizer), {output / 'result.json'}, {output / 'metrics.jsonl'}")
    if (picture := output / HISTOGRAM_PICTURE).exists():
        click.echo(f"wrote {picture} (the spread of the rewards on held-out text)")
    click.echo(f"next: {following}")
