"""What each task is scored by, when its answers end, and which average it counts in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refine.data.prompts import longbench, needles
from refine.errors import SettingError, nearest
from refine.evaluation import metrics
from refine.evaluation.metrics import Scorer


@dataclass(frozen=True)
class Task:
    """family: needles | questions | longbench. answer_tokens: tokens to generate where a prompt does not say.

    first_line: only the first line counts, so generation ends with it. before_answer: what stands between a prompt and
    the reference answer whose log-probability is measured. all_answers: every answer is expected, not any of them.
    """

    name: str
    family: str
    scorer: Scorer
    answer_tokens: int
    first_line: bool = False
    before_answer: str = " "
    all_answers: bool = False

    def reference(self, answers: Sequence[str]) -> str:
        """The answer whose log-probability is measured: the first accepted one, or all that are expected."""
        return ", ".join(answers) if self.all_answers else answers[0]


_LONGBENCH: dict[str, Scorer] = {
    "narrativeqa": metrics.token_f1,
    "qasper": metrics.token_f1,
    "multifieldqa_en": metrics.token_f1,
    "hotpotqa": metrics.token_f1,
    "2wikimqa": metrics.token_f1,
    "musique": metrics.token_f1,
    "gov_report": metrics.rouge_l,
    "qmsum": metrics.rouge_l,
    "multi_news": metrics.rouge_l,
    "trec": metrics.classification,
    "triviaqa": metrics.token_f1,
    "samsum": metrics.rouge_l,
    "lcc": metrics.code_similarity,
    "repobench-p": metrics.code_similarity,
}
_FIRST_LINE = ("trec", "triviaqa", "samsum")  # as LongBench's eval.py
_CODE = ("lcc", "repobench-p")
PAPER_LONGBENCH = tuple(name for name in _LONGBENCH if name not in ("musique", "gov_report"))


def _longbench(name: str) -> Task:
    scorer, line = _LONGBENCH[name], name in _FIRST_LINE
    return Task(
        name,
        "longbench",
        metrics.on_first_line(scorer) if line else scorer,
        longbench.TASKS[name].answer_tokens,
        first_line=line,
        before_answer="\n" if name in _CODE else " ",
    )


def _needles(name: str) -> Task:
    return Task(name, "needles", metrics.share_found, needles.ANSWER_TOKENS, all_answers=True)


def _questions(name: str) -> Task:
    return Task(name, "questions", metrics.any_found, 32)


TASKS: dict[str, Task] = {
    **{name: _needles(name) for name in needles.TASKS},
    **{name: _questions(name) for name in ("ruler_squadqa", "ruler_hotpotqa", "factsqa")},
    **{name: _longbench(name) for name in _LONGBENCH},
}


def known_task(name: str) -> Task:
    """The task of that name. Raises SettingError, naming the nearest, if there is none."""
    if name not in TASKS:
        raise SettingError(f"no task {name!r}{nearest(name, TASKS)}; there are {', '.join(TASKS)}")
    return TASKS[name]
