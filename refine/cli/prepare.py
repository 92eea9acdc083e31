"""`refine prepare`: the data stages of dvc.yaml, each by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def prepare() -> None:
    """Make tokenizer, token sequences and test prompts out of data/, into prepared/."""


def _stage(function: Callable[..., None]) -> Any:
    """A verb with the options that all stages share."""
    for option in (
        click.option("-S", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="override a setting"),
        click.option("--params", default="params.yaml", show_default=True, type=Path, help="settings file"),
        click.option("--data", default="data", show_default=True, type=Path, help="folder of the raw documents"),
    ):
        function = option(function)
    return prepare.command()(function)


def _prepared_tokenizer() -> Any:
    from refine import paths
    from refine.data.tokenizer import load_tokenizer
    from refine.errors import DataError

    folder = paths.prepared() / "tokenizer"
    if not folder.is_dir():
        raise DataError(f"{folder} is missing: run `dvc repro tokenizer`, or `refine prepare tokenizer`")
    return load_tokenizer(folder)


@_stage
def tokenizer(params: Path, overrides: tuple[str, ...], data: Path) -> None:
    """Train a BPE on the training text, or take a model's own tokenizer."""
    from refine import paths, settings
    from refine.data.corpus.version import require_recorded
    from refine.data.tokenizer import prepare_tokenizer

    require_recorded(data, ["train.parquet"])
    made = prepare_tokenizer(
        settings.load(params, overrides).tokenizer, data / "train.parquet", paths.prepared() / "tokenizer"
    )
    click.echo(f"tokenizer: {len(made)} pieces")


@_stage
def documents(params: Path, overrides: tuple[str, ...], data: Path) -> None:
    """Cut the documents of each split into token sequences of one length."""
    from refine import paths, settings
    from refine.cli.progress_line import moving_line
    from refine.data.corpus.version import require_recorded
    from refine.data.token_sequences import SPLITS, prepare_token_sequences

    chosen = settings.load(params, overrides).documents
    require_recorded(data, [f"{split}.parquet" for split in SPLITS])
    made = _prepared_tokenizer()
    with moving_line() as (going_on, said):
        prepare_token_sequences(chosen, data, made, paths.prepared() / "documents", said, going_on)


@_stage
def needles(params: Path, overrides: tuple[str, ...], data: Path) -> None:
    """Make RULER's needle prompts; the essays are the validation text."""
    from refine import paths, settings
    from refine.data.corpus.version import require_recorded
    from refine.data.prompts.needles import write_needles
    from refine.data.raw_documents import read_texts
    from refine.system.files import folder_beside

    chosen = settings.load(params, overrides)
    require_recorded(data, ["validation.parquet"])
    made = _prepared_tokenizer()
    essay = list(read_texts(data / "validation.parquet"))
    with folder_beside(paths.prepared() / "needles") as beside:
        of = chosen.needles
        files = write_needles(of.tasks, of.lengths, of.samples, made, essay, chosen.seed, beside, of.answer_tokens)
    click.echo(f"needles: {of.samples} prompts in each of {len(files)} files")


@_stage
def questions(params: Path, overrides: tuple[str, ...], data: Path) -> None:
    """Make multi-document questions: to train on, to choose settings by, and to test with."""
    from refine import paths, settings
    from refine.data.corpus.version import require_recorded
    from refine.data.prompts.questions import write_questions
    from refine.system.files import folder_beside

    chosen = settings.load(params, overrides)
    require_recorded(data, ["train.parquet", "validation.parquet"])
    made = _prepared_tokenizer()
    with folder_beside(paths.prepared() / "questions") as beside:
        files = write_questions(chosen.questions, data, made, chosen.seed, beside)
    click.echo(f"questions: {len(files)} files")
