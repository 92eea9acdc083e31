"""`refine evaluate`: score a model on documents, needles, questions, LongBench and lm-eval's tasks, in one folder."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import click

from refine import paths
from refine.cli import options
from refine.errors import SettingError, reason
from refine.settings.arms import ARM_NAME, OWN_ARMS

SAMPLES, ROWS = click.IntRange(1, options.MOST_SAMPLES), click.IntRange(1, options.MOST_ROWS)


def _arm(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """The arm names a folder of results, so it may not be a path."""
    if value is not None and not re.match(ARM_NAME, value):
        raise click.BadParameter(f"{value!r} is no name of an arm: expected small letters, digits and _")
    return value


def _names(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


def _lengths(context: click.Context, parameter: click.Parameter, value: str | None) -> list[int] | None:
    names = _names(context, parameter, value)
    if names is None:
        return None
    lengths = [int(name) for name in names if name.isdecimal() and len(name) <= 12]
    if not names or len(lengths) < len(names) or not all(0 < one <= options.MOST_TOKENS for one in lengths):
        expected = f"expected lengths from 1 to {options.MOST_TOKENS} tokens, as in 4096,8192"
        raise SettingError(f"--lengths {reason(value or '')}: {expected}")
    return lengths


@click.command()
@click.argument("model", metavar="FOLDER|NAME|models:/NAME@ALIAS")
@click.option(
    "--tasks",
    callback=_names,
    show_default="all in the data",
    help="Comma-separated tasks and families: needles, questions, longbench, next_token, ...",
)
@click.option(
    "--lengths",
    callback=_lengths,
    help="Score only these prompt lengths [tokens]. Needles that the data lacks are made.",
)
@click.option("--samples", type=SAMPLES, help="Score the first N prompts of each task and length.")
@click.option("--harness", callback=_names, help="lm-eval tasks, as in piqa,hellaswag (needs the extra `harness`).")
@click.option("--harness-tasks", type=options.PATH, help="Folder with your own lm-eval tasks (YAML).")
@options.data(paths.prepared())
@options.output(shown="results/evaluation/MODEL")
@click.option("--tokenizer", show_default="the model's own", help="Folder, hub name or mistral_v1.")
@click.option(
    "--essays",
    show_default="data/validation.parquet",
    help="Prose for needles that the data lacks: file, folder or data set.",
)
@click.option("--longbench", help="Folder or hub name of LongBench, if the data lacks it.")
@options.chat()
@click.option(
    "--batch-size",
    type=ROWS,
    default=8,
    show_default=True,
    help="Prompts or sequences in a forward pass. It changes no score.",
)
@options.seed(42)
@click.option(
    "--test-time",
    metavar="ARM",
    callback=_arm,
    help=f"Adapt the model to each prompt by an arm ({', '.join(OWN_ARMS['test_time'][1:])}, or one of "
    "training.test_time.variants); score it before and after.",
)
@click.option(
    "--rescore",
    is_flag=True,
    help="Of a registered version: compare it by these scores from now on, not by those that it has.",
)
@options.settings()
@options.device()
def evaluate(
    model: str, tasks: list[str] | None, lengths: list[int] | None, samples: int | None, **others: Any
) -> None:
    """Score a model: next-token loss, needles, questions, LongBench, lm-eval's tasks; each with count and interval.

    Wrong names, files and lengths are reported before the model is loaded. Scores of a registered version are added
    to that version in MLflow: as extra scores, or, if all documents and prompts of the data are scored and the version
    has no scores yet, as those that it is compared by.
    """
    from refine.cli.registered_model import fetched, record_scores
    from refine.evaluation import evaluate_model
    from refine.evaluation.evaluate import check_model, model_tokenizer
    from refine.evaluation.lm_eval_harness import check_harness
    from refine.system.quiet import quiet_libraries
    from refine.tracking.registered_folders import pinned

    complete = not (tasks or lengths or samples or others["harness"] or others["test_time"])
    _check_rescore(model, complete, others["rescore"])
    quiet_libraries()
    options.check_device(others["device"])
    output = others["output"] or paths.results() / "evaluation" / _folder_name(model, others["test_time"])
    make_adapter = _adapter(others)
    version = pinned(model)  # an alias may move while the model is scored
    with fetched(version) as folder:
        tokenizer = model_tokenizer(others["tokenizer"] or folder)
        check_model(folder, tokenizer)
        adapter = make_adapter(tokenizer=tokenizer) if make_adapter else None
        _check_freeze(adapter, folder)
        check_harness(others["harness"] or (), tokenizer, lengths, others["harness_tasks"])
        inputs = _inputs(tasks, lengths, samples, tokenizer, others)
        _check_output(output)
        score = partial(
            evaluate_model, folder, inputs, tokenizer, others["batch_size"], device=others["device"], name=model,
            harness=others["harness"] or (), progress=lambda line: click.echo(line, err=True),
            harness_options={"samples": samples, "lengths": lengths, "include": others["harness_tasks"]},
        )  # fmt: skip
        before = score() if adapter else None
        found = score(adapter=adapter, answers_file=output / "answers.jsonl")
    _write(found, output, before)
    recorded = None if adapter else record_scores(version, found, output, complete, others["rescore"])
    if recorded:
        click.echo(f"recorded on {recorded}")


def _check_rescore(model: str, complete: bool, rescore: bool) -> None:
    """Raises SettingError: --rescore of no registered version, or of a part of the data."""
    from refine.tracking.references import is_reference

    if rescore and not (complete and is_reference(model)):
        raise SettingError(
            "--rescore takes a registered version (models:/NAME/VERSION) and all documents and prompts of the data: "
            "leave out --tasks, --lengths, --samples, --harness and --test-time"
        )


def _inputs(
    tasks: list[str] | None, lengths: list[int] | None, samples: int | None, tokenizer: Any, others: dict[str, Any]
) -> Any:
    from refine.evaluation import Inputs, Sources, load_inputs

    if others["harness"] and tasks is None:
        return Inputs()  # lm-eval's tasks only
    sources = Sources(
        tokenizer, lambda: _essays(others["essays"]), others["longbench"], others["seed"], chat=others["chat"]
    )
    inputs = load_inputs(others["data"], tasks, lengths, samples, sources)
    return Inputs(prompts=inputs.prompts) if others["test_time"] else inputs  # documents are not adapted to


def _adapter(others: dict[str, Any]) -> Any:
    """Makes the test-time trainer of --test-time from a tokenizer; or None. Raises SettingError: training.test_time is
    null."""
    if others["test_time"] is None:
        return None
    if others["harness"]:
        raise SettingError("--test-time does not adapt to lm-eval's tasks: leave out --test-time or --harness")
    from refine import settings
    from refine.training.test_time import TestTimeTrainer

    values = settings.load(others["params"], others["overrides"])
    if values.training.test_time is None:
        raise SettingError(f"{others['params']}: training.test_time is null: set it to adapt at test time")
    return partial(TestTimeTrainer, values.training.test_time, others["test_time"], values.seed)


def _check_freeze(adapter: Any, folder: Any) -> None:
    """Raises SettingError: training.test_time.freeze does not fit the model in `folder`; a hub name passes."""
    if adapter is None or not paths.model(folder).is_dir():
        return
    from refine.training.freezing import check_config

    check_config(paths.model(folder), adapter.settings.freeze, "training.test_time.freeze")


def _check_output(folder: Path) -> None:
    """Raises DataError if `folder` cannot be written to: before the work, not after it."""
    from refine.errors import DataError
    from refine.system.files import why_not_writable
    from refine.system.leftovers import sweep

    sweep(folder)
    if problem := why_not_writable(folder):
        raise DataError(f"{folder}: cannot be written to ({problem}); name another folder with --output")


def _essays(source: str | None) -> list[str]:
    from refine.data.prompts.essays import read_essays

    return read_essays(source or Path("data") / "validation.parquet")


def _folder_name(model: str, test_time: str | None) -> str:
    name = model.removeprefix("models:/").strip("/").replace("/", "_").replace("@", "_")
    return f"{name}-test-time-{test_time}" if test_time else name


def _write(found: Any, output: Path, before: Any) -> None:
    """`before`: the scores of the same prompts without adaptation; None without --test-time."""
    from refine.reports.pictures import draw_evaluations
    from refine.system.files import write_text

    record, table = found.save(output), found.table(before)
    write_text(output / "table.md", table + "\n")
    click.echo(table)
    written = [record, output / "table.md", output / "answers.jsonl"]
    if before is not None:
        written.append(before.save(output / "before"))
    if found.next_token or found.tasks:
        written.append(draw_evaluations([found], output / "scores.png"))
    click.echo(f"\nwritten: {', '.join(map(str, written))}")
