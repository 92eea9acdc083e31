"""The experiment's questions: sets for training, for validation and for the test, which share no passage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from refine.data.prompts.chat import ChatForm
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
FILES = {"train": "_train", "validation": "_validation", "test": ""}  # ending of the file's name


def write_questions(settings: QuestionsSettings, data: Path, tokenizer: Any, seed: int, folder: Path) -> list[Path]:
    """Write `folder`/<task>_<length>.parquet for the test, and the same with _train and _validation, for each length.

    data: folder of the raw documents, among which facts about people are hidden. Raises DataError: a source is missing,
    holds too few questions, or its questions do not fit a length; settings.chat needs a chat template.
    """
    chat = ChatForm(tokenizer, "questions.chat: the tokenizer") if settings.chat else None
    task = TASKS[settings.source]
    pools = _facts(settings, data, seed) if settings.source == "facts" else _published(settings, seed)
    counts = {"train": settings.train_samples, "validation": settings.validation_samples, "test": settings.test_samples}
    made = {
        folder / f"{task}_{length}{FILES[name]}.parquet": make_questions(
            pool, task, length, counts[name], tokenizer, seed, settings.answer_tokens, chat
        )
        for length in settings.lengths
        for name, pool in pools.items()
    }
    return [write_prompts(prompts, path) for path, prompts in made.items()]


def _facts(settings: QuestionsSettings, data: Path, seed: int) -> dict[str, QuestionPool]:
    """Sets that share no person and no passage: validation and test take turns in the held-out passages."""
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
