"""All tasks of prompts: the family of each, how long its answer may be, when it ends, and its reference answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refine.data.prompts import longbench, multi_document_qa, needles
from refine.errors import SettingError, nearest


@dataclass(frozen=True)
class Task:
    """family: needles | questions | longbench. answer_tokens: tokens to generate, if the prompt sets no number.

    first_line: only the first line counts, so generation stops after it. before_answer: the text between the prompt and
    the reference answer. all_answers: all accepted answers are expected, instead of any one of them.
    """

    name: str
    family: str
    answer_tokens: int
    first_line: bool = False
    before_answer: str = " "
    all_answers: bool = False

    def reference(self, answers: Sequence[str]) -> str:
        """The answer whose log-probability is measured: the first accepted one, or all of them joined."""
        return ", ".join(answers) if self.all_answers else answers[0]


_FIRST_LINE = ("trec", "triviaqa", "samsum")  # as LongBench's eval.py
_CODE = ("lcc", "repobench-p")
QUESTIONS = ("ruler_squadqa", "ruler_hotpotqa", "factsqa")
PAPER_LONGBENCH = tuple(name for name in longbench.TASKS if name not in ("musique", "gov_report"))


def _longbench(name: str) -> Task:
    return Task(
        name,
        "longbench",
        longbench.TASKS[name].answer_tokens,
        first_line=name in _FIRST_LINE,
        before_answer="\n" if name in _CODE else " ",
    )


TASKS: dict[str, Task] = {
    **{name: Task(name, "needles", needles.ANSWER_TOKENS, all_answers=True) for name in needles.TASKS},
    **{name: Task(name, "questions", multi_document_qa.ANSWER_TOKENS) for name in QUESTIONS},
    **{name: _longbench(name) for name in longbench.TASKS},
}


def known_task(name: str) -> Task:
    """The task called `name`. Raises SettingError with the nearest name if there is none."""
    if name not in TASKS:
        raise SettingError(f"no task {name!r}{nearest(name, TASKS)}; there are {', '.join(TASKS)}")
    return TASKS[name]
