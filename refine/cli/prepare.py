"""`refine prepare`: the data stages of dvc.yaml, one verb each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from refine.cli import options


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def prepare() -> None:
    """Make tokenizer, token sequences and test prompts from data/ in prepared/."""
    from refine import paths
    from refine.system.leftovers import sweep

    sweep(paths.prepared())


def _stage(function: Callable[..., None]) -> Any:
    """A verb with the options that every stage has."""
    return prepare.command()(options.settings()(options.data(Path("data"))(function)))


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
    """Train a BPE, or copy a model's tokenizer."""
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
    """Cut the documents of each split into token sequences."""
    from refine import paths, settings
    from refine.cli.progress_line import moving_line
    from refine.data.corpus.version import require_recorded
    from refine.data.token_sequences import RECALL, SPLITS, prepare_token_sequences

    values = settings.load(params, overrides)
    splits = (*SPLITS, RECALL) if values.data.recall else SPLITS
    require_recorded(data, [f"{split}.parquet" for split in splits])
    made = _prepared_tokenizer()
    with moving_line() as (show, say):
        prepare_token_sequences(values.documents, data, made, paths.prepared() / "documents", say, show)


@_stage
def needles(params: Path, overrides: tuple[str, ...], data: Path) -> None:
    """Make RULER's needle prompts from the validation text."""
    from refine import paths, settings
    from refine.data.corpus.version import require_recorded
    from refine.data.prompts.chat import ChatForm
    from refine.data.prompts.needles import write_needles
    from refine.data.raw_documents import read_texts
    from refine.system.files import folder_beside

    chosen = settings.load(params, overrides)
    require_recorded(data, ["validation.parquet"])
    made = _prepared_tokenizer()
    essay = list(read_texts(data / "validation.parquet"))
    with folder_beside(paths.prepared() / "needles") as beside:
        wanted = chosen.needles
        chat = ChatForm(made, "needles.chat: the tokenizer") if wanted.chat else None
        files = write_needles(
            wanted.tasks, wanted.lengths, wanted.samples, made, essay, chosen.seed, beside, wanted.answer_tokens, chat
        )
    click.echo(f"needles: {wanted.samples} prompts in each of {len(files)} files")


@_stage
def questions(params: Path, overrides: tuple[str, ...], data: Path) -> None:
    """Make multi-document questions.

    There are questions for training, for validation and for the test.
    """
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
