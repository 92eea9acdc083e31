"""`refine evaluate`: a model against documents, needles, questions, LongBench and lm-eval's tasks, into one folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from refine import paths
from refine.errors import SettingError

PLACE = click.Path(path_type=Path)
COUNT = click.IntRange(1)


def _names(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


def _lengths(context: click.Context, parameter: click.Parameter, value: str | None) -> list[int] | None:
    names = _names(context, parameter, value)
    if names is None:
        return None
    if not names or not all(name.isdigit() and int(name) > 0 for name in names):
        raise SettingError(f"--lengths {value}: expected lengths in tokens, as in 4096,8192")
    return [int(name) for name in names]


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    (
        "--tasks",
        {
            "callback": _names,
            "help": "Tasks, families (needles, questions, longbench), next_token; default: all that DATA holds.",
        },
    ),
    ("--lengths", {"callback": _lengths, "help": "Only these lengths [tokens]; needles are made where DATA has none."}),
    ("--samples", {"type": COUNT, "help": "The first so many prompts of each task and length."}),
    ("--harness", {"callback": _names, "help": "lm-eval tasks, as in piqa,hellaswag (needs the extra `harness`)."}),
    ("--harness-tasks", {"type": PLACE, "help": "Folder with lm-eval tasks of your own (YAML)."}),
    ("--data", {"type": PLACE, "help": "Folder of documents and prompts (default: prepared)."}),
    ("--output", {"type": PLACE, "help": "Folder of the results (default: results/evaluation/MODEL)."}),
    ("--tokenizer", {"help": "Folder or hub name, or mistral_v1 (default: the model's own)."}),
    (
        "--essays",
        {"help": "Prose for needles that are made: file, folder or data set (default: data/validation.parquet)."},
    ),
    ("--longbench", {"help": "LongBench where DATA has none: folder or hub name."}),
    (
        "--batch-size",
        {
            "type": COUNT,
            "default": 8,
            "show_default": True,
            "help": "Prompts or sequences per pass; changes no score.",
        },
    ),
    ("--seed", {"type": int, "default": 42, "show_default": True, "help": "Seed of needles that are made."}),
    (
        "--test-time",
        {
            "type": click.Choice(["sft", "refine"]),
            "help": "Adapt to each prompt before answering it (params: training.test_time); scored before and after.",
        },
    ),
    (
        "--params",
        {
            "type": PLACE,
            "default": Path("params.yaml"),
            "show_default": True,
            "help": "Settings file, for --test-time.",
        },
    ),
    ("--device", {"help": "As torch names it (default: cuda if there is one)."}),
]


def _options(command: Any) -> Any:
    for name, options in reversed(OPTIONS):
        command = click.option(name, **options)(command)
    return command


@click.command()
@click.argument("model", metavar="FOLDER|NAME|models:/NAME@ALIAS")
@_options
def evaluate(
    model: str, tasks: list[str] | None, lengths: list[int] | None, samples: int | None, **options: Any
) -> None:
    """Score a model: next-token loss, needles, questions, LongBench, lm-eval's tasks; each with count and interval.

    Wrong names, files and lengths are found before the model is loaded. The scores of a registered version are added
    to it.
    """
    from refine.cli.registered_model import fetched, record_scores
    from refine.evaluation import evaluate_model
    from refine.evaluation.evaluate import check_model, model_tokenizer
    from refine.evaluation.lm_eval_harness import check_harness
    from refine.system.quiet import quiet_libraries

    quiet_libraries()
    output = options["output"] or paths.results() / "evaluation" / _folder_name(model, options["test_time"])
    adapter = _adapter(options)
    with fetched(model) as folder:
        tokenizer = model_tokenizer(options["tokenizer"] or folder)
        check_model(folder, tokenizer)
        check_harness(options["harness"] or (), tokenizer, lengths, options["harness_tasks"])
        inputs = _inputs(tasks, lengths, samples, tokenizer, options)
        _check_output(output)
        score = partial(
            evaluate_model, folder, inputs, tokenizer, options["batch_size"], device=options["device"], name=model,
            harness=options["harness"] or (), progress=lambda line: click.echo(line, err=True),
            harness_options={"samples": samples, "lengths": lengths, "include": options["harness_tasks"]},
        )  # fmt: skip
        before = score() if adapter else None
        found = score(adapter=adapter, answers_file=output / "answers.jsonl")
    _write(found, output, before)
    recorded = None if adapter else record_scores(model, found.metrics())
    if recorded:
        click.echo(f"recorded on {recorded}")


def _inputs(
    tasks: list[str] | None, lengths: list[int] | None, samples: int | None, tokenizer: Any, options: dict[str, Any]
) -> Any:
    from refine.evaluation import Inputs, Sources, load_inputs

    if options["harness"] and tasks is None:
        return Inputs()  # lm-eval's tasks alone
    sources = Sources(tokenizer, lambda: _essays(options["essays"]), options["longbench"], options["seed"])
    inputs = load_inputs(options["data"] or paths.prepared(), tasks, lengths, samples, sources)
    return Inputs(prompts=inputs.prompts) if options["test_time"] else inputs  # documents are not adapted to


def _adapter(options: dict[str, Any]) -> Any:
    """The test-time trainer of --test-time, or None. Raises SettingError where training.test_time is null."""
    if options["test_time"] is None:
        return None
    if options["harness"]:
        raise SettingError("--test-time adapts to our own prompts; lm-eval's tasks (--harness) are scored without it")
    from refine import settings
    from refine.training.test_time import TestTimeTrainer

    values = settings.load(options["params"])
    if values.training.test_time is None:
        raise SettingError(f"{options['params']}: training.test_time is null: give its settings to adapt at test time")
    return TestTimeTrainer(values.training.test_time, options["test_time"], values.seed)


def _check_output(folder: Path) -> None:
    """Raises DataError where `folder` cannot be written to: before the work, not after it."""
    from refine.errors import DataError
    from refine.system.files import why_not_writable

    if said := why_not_writable(folder):
        raise DataError(f"{folder}: cannot be written to ({said}); name another folder with --output")


def _essays(source: str | None) -> list[str]:
    from refine.data.prompts.essays import read_essays

    return read_essays(source or Path("data") / "validation.parquet")


def _folder_name(model: str, test_time: str | None) -> str:
    name = model.removeprefix("models:/").strip("/").replace("/", "_").replace("@", "_")
    return f"{name}-test-time-{test_time}" if test_time else name


def _write(found: Any, output: Path, before: Any) -> None:
    """`before`: the same prompts' scores without adapting to them, None where nothing is adapted."""
    from refine.reports.pictures import draw_evaluations

    record, table = found.save(output), found.table(before)
    (output / "table.md").write_text(table + "\n", encoding="utf-8")
    click.echo(table)
    written = [record, output / "table.md", output / "answers.jsonl"]
    if before is not None:
        written.append(before.save(output / "before"))
    if found.next_token or found.tasks:
        written.append(draw_evaluations([found], output / "scores.png"))
    click.echo(f"\nwritten: {', '.join(map(str, written))}")
