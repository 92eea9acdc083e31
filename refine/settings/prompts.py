"""Settings of the prompts: needles in a haystack, and questions over many passages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from refine.errors import nearest
from refine.settings.base import MOST_SAMPLES, MOST_TOKENS, Section

NEEDLE_TASKS = (
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
)


def check_tasks(tasks: tuple[str, ...]) -> tuple[str, ...]:
    """`tasks`. Raises ValueError: RULER has no such needle task, or one is named twice."""
    for task in tasks:
        if task not in NEEDLE_TASKS:
            raise ValueError(
                f"no needle task {task!r}{nearest(task, NEEDLE_TASKS)}; the tasks are {', '.join(NEEDLE_TASKS)}"
            )
    if len(set(tasks)) != len(tasks):
        raise ValueError(f"names a task twice: {', '.join(tasks)}")
    return tasks


class NeedlesSettings(Section):
    """RULER needle-in-a-haystack prompts for the experiment's evaluation."""

    tasks: tuple[str, ...] = Field(("niah_single_1",), min_length=1, description="names of RULER tasks")
    lengths: tuple[int, ...] = Field((256, 512, 1024), min_length=1, description="prompt and answer together [tokens]")
    samples: int = Field(50, ge=1, le=MOST_SAMPLES, description="prompts per task and length")
    answer_tokens: int = Field(128, ge=1, le=MOST_TOKENS, description="tokens to generate; RULER's are 128")
    chat: bool = Field(
        False,
        description="true puts prompts into the tokenizer's chat template, as for an instruct model; false as they are",
    )

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        return check_tasks(tasks)

    @field_validator("lengths")
    @classmethod
    def _positive(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        return _differing(lengths)


class QuestionsSettings(Section):
    """Questions over many passages, in RULER's form, for post-training, validation and tests."""

    source: Literal["facts", "squad", "hotpotqa"] = Field(
        "facts", description="facts about invented people in the text of data/, or a data set"
    )
    train: str | None = Field(None, description="squad, hotpotqa: .json file, folder or hub name of the training set")
    test: str | None = Field(None, description="squad, hotpotqa: .json file, folder or hub name of the test set")
    train_split: str = Field("train", description="split of a training set that is not a file")
    test_split: str = Field("validation", description="split of a test set that is not a file")
    revision: str | None = Field(None, description="branch, tag or commit of hub sets")
    lengths: tuple[int, ...] = Field((512,), min_length=1, description="prompt and answer together [tokens]")
    train_samples: int = Field(256, ge=1, le=MOST_SAMPLES, description="training prompts per length")
    validation_samples: int = Field(50, ge=1, le=MOST_SAMPLES, description="validation prompts per length")
    test_samples: int = Field(50, ge=1, le=MOST_SAMPLES, description="test prompts per length")
    answer_tokens: int = Field(32, ge=1, le=MOST_TOKENS, description="tokens to generate; RULER's are 32")
    chat: bool = Field(
        False,
        description="true puts prompts into the tokenizer's chat template, as for an instruct model; false as they are",
    )

    @field_validator("lengths")
    @classmethod
    def _positive(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        return _differing(lengths)

    @model_validator(mode="after")
    def _sources(self) -> QuestionsSettings:
        named = [name for name in ("train", "test") if getattr(self, name) is not None]
        if self.source == "facts" and named:
            raise ValueError(
                f"questions.{named[0]} is given, but source 'facts' makes its own: change source, or leave it out"
            )
        if self.source != "facts" and len(named) < 2:
            raise ValueError(
                f"source {self.source!r} needs questions.train and questions.test: a file or hub name each"
            )
        return self


def _differing(lengths: tuple[int, ...]) -> tuple[int, ...]:
    if min(lengths) < 1 or len(set(lengths)) != len(lengths):
        raise ValueError(f"lengths are positive and differ, not {', '.join(map(str, lengths))}")
    if max(lengths) > MOST_TOKENS:
        raise ValueError(f"length {max(lengths)} is above {MOST_TOKENS} tokens")
    return lengths
