"""The experiment's questions: sets to train on, to choose settings by and to test with, that share no passage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from refine.data.prompts.invented_people import cut_passages, invented_facts
from refine.data.prompts.multi_document_qa import (
    QuestionPool,
    make_questions,
    read_hotpotqa,
    read_squad,
    split,
    without_shared_passages,
)
from refine.data.prompts.prompt import write_prompts
from refine.data.raw_documents import read_texts
from refine.settings.prompts import QuestionsSettings

TASKS = {"facts": "factsqa", "squad": "ruler_squadqa", "hotpotqa": "ruler_hotpotqa"}
READERS: dict[str, Callable[..., QuestionPool]] = {"squad": read_squad, "hotpotqa": read_hotpotqa}
FILES = {"train": "_train", "validation": "_validation", "test": ""}  # what a file's name ends with


def write_questions(settings: QuestionsSettings, data: Path, tokenizer: Any, seed: int, folder: Path) -> list[Path]:
    """`folder`/<task>_<length>.parquet to test with, and the same with _train and _validation, for each length.

    data: folder of the raw documents, which invented facts are hidden in. Raises DataError: sources that are missing,
    or hold fewer questions than asked for, or whose questions do not fit a length.
    """
    task = TASKS[settings.source]
    pools = _facts(settings, data, seed) if settings.source == "facts" else _published(settings, seed)
    counts = {"train": settings.train_samples, "validation": settings.validation_samples, "test": settings.test_samples}
    made = {
        folder / f"{task}_{length}{FILES[name]}.parquet": make_questions(
            pool, task, length, counts[name], tokenizer, seed, settings.answer_tokens
        )
        for length in settings.lengths
        for name, pool in pools.items()
    }
    return [write_prompts(prompts, path) for path, prompts in made.items()]


def _facts(settings: QuestionsSettings, data: Path, seed: int) -> dict[str, QuestionPool]:
    """People apart, and passages apart: those to validate and to test with take turns in the held-out text."""
    held_out = cut_passages(read_texts(data / "validation.parquet"))
    train, validation = settings.train_samples, settings.validation_samples
    return {
        "train": invented_facts(read_texts(data / "train.parquet"), train, seed),
        "validation": invented_facts(held_out[::2], validation, seed, first=train),
        "test": invented_facts(held_out[1::2], settings.test_samples, seed, first=train + validation),
    }


def _published(settings: QuestionsSettings, seed: int) -> dict[str, QuestionPool]:
    read = READERS[settings.source]
    test = read(settings.test, split=settings.test_split, revision=settings.revision)
    rest = without_shared_passages(read(settings.train, split=settings.train_split, revision=settings.revision), test)
    train, validation = split(rest, settings.validation_samples, seed)
    return {"train": train, "validation": validation, "test": test}
