"""Settings of the test prompts that are made from text: needles in haystacks."""

from __future__ import annotations

from pydantic import Field, field_validator

from refine.errors import nearest
from refine.settings.base import Section

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


class NeedlesSettings(Section):
    """RULER needle-in-a-haystack prompts for the experiment's evaluation."""

    tasks: tuple[str, ...] = Field(("niah_single_1",), min_length=1, description="RULER task names")
    lengths: tuple[int, ...] = Field((256, 512, 1024), min_length=1, description="prompt and answer together [tokens]")
    samples: int = Field(50, ge=1, description="prompts per task and length")
    answer_tokens: int = Field(128, ge=1, description="tokens to generate; RULER's are 128")

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        for task in tasks:
            if task not in NEEDLE_TASKS:
                raise ValueError(
                    f"no needle task {task!r}{nearest(task, NEEDLE_TASKS)}; there are {', '.join(NEEDLE_TASKS)}"
                )
        if len(set(tasks)) != len(tasks):
            raise ValueError(f"names a task twice: {', '.join(tasks)}")
        return tasks

    @field_validator("lengths")
    @classmethod
    def _positive(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if min(lengths) < 1 or len(set(lengths)) != len(lengths):
            raise ValueError(f"lengths are positive and differ, not {', '.join(map(str, lengths))}")
        return lengths
