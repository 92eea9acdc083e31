"""Scorers: functions of an answer (generated text) and the accepted answers, with a score from 0 to 1.

Those of LongBench (THUDM/LongBench, metrics.py and eval.py, MIT) score as published, except where a docstring says
otherwise; the best over the accepted answers counts. Those of RULER (arXiv 2404.06654) look for the accepted answers in
the entire text, so that an answer that starts with a newline counts.
"""

from __future__ import annotations

import difflib
import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

from refine.data.prompts.tasks import Task

Scorer = Callable[[str, Sequence[str]], float]

# The classes of LongBench's trec, in the spelling of its rows. No name is part of another.
TREC_CLASSES = (
    "Food", "Date", "Order, rank", "Speed", "Disease and medicine", "Word with a special property", "Abbreviation",
    "Language", "Letter like a-z", "Other entity", "Animal", "Expression abbreviated", "Price", "Techniques and method",
    "Musical instrument", "Mountain", "Currency name", "Event", "Product", "State", "Individual", "Organ of body",
    "Reason", "Manner of an action", "City", "Religion", "Invention, book and other creative piece",
    "Distance, linear measure", "Temperature", "Postcode or other code", "Size, area and volume", "Sport", "Country",
    "Other location", "Lasting time of somethin", "Equivalent term", "Description of something", "Weight", "Vehicle",
    "Color", "Other number", "Definition of something", "Element and substance", "Description of a person",
    "Symbols and sign", "Number of something", "Plant", "Percent, fraction", "Group or organization of person",
    "Title of a person",
)  # fmt: skip


def share_found(answer: str, accepted: Sequence[str]) -> float:
    """RULER's score of needles: the share of the expected values that occur in the answer, in any case."""
    return sum(value.lower() in answer.lower() for value in accepted) / len(accepted)


def any_found(answer: str, accepted: Sequence[str]) -> float:
    """RULER's score of questions: 1 if any accepted answer occurs in the answer, in any case.

    lm-eval 0.4.13's string_match_part gives the share of the accepted answers instead.
    """
    return float(any(value.lower() in answer.lower() for value in accepted))


def first_line(answer: str) -> str:
    """The first line after leading newlines, which trec, triviaqa and samsum score."""
    return answer.lstrip("\n").split("\n")[0]


def token_f1(answer: str, accepted: Sequence[str]) -> float:
    """LongBench's F1 of words, without case, punctuation and articles (SQuAD's normalisation)."""
    return max(_f1(_normalised(answer), _normalised(value)) for value in accepted)


def rouge_l(answer: str, accepted: Sequence[str]) -> float:
    """LongBench's ROUGE-L F (package rouge 1.0.1); an answer without words scores 0.

    A text too long for the package's recursion is scored too; the published scorer gives it 0.
    """
    scores = []
    for value in accepted:
        with _deep_recursion(len(answer) + len(value)):
            try:
                scores.append(float(_rouge().get_scores([answer], [value], avg=True)["rouge-l"]["f"]))
            except ValueError:  # "Hypothesis is empty": nothing but full stops and spaces
                scores.append(0.0)
    return max(scores)


def classification(answer: str, accepted: Sequence[str], classes: Sequence[str] = TREC_CLASSES) -> float:
    """LongBench's score of trec: 1 / the number of classes that the answer names, or 0 if the right one is missing."""
    named = [name for name in classes if name in answer]
    return max(1 / len(named) if value in named else 0.0 for value in accepted)


def code_similarity(answer: str, accepted: Sequence[str]) -> float:
    """LongBench's score of code: how similar the next line is to the answer's first line without `, # or //."""
    lines = answer.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return max(round(100 * difflib.SequenceMatcher(None, line, value).ratio()) / 100 for value in accepted)


def on_first_line(scorer: Scorer) -> Scorer:
    """`scorer`, applied to the answer's first line only."""

    def scored(answer: str, accepted: Sequence[str]) -> float:
        return scorer(first_line(answer), accepted)

    return scored


LONGBENCH: dict[str, Scorer] = {
    "narrativeqa": token_f1,
    "qasper": token_f1,
    "multifieldqa_en": token_f1,
    "hotpotqa": token_f1,
    "2wikimqa": token_f1,
    "musique": token_f1,
    "gov_report": rouge_l,
    "qmsum": rouge_l,
    "multi_news": rouge_l,
    "trec": classification,
    "triviaqa": token_f1,
    "samsum": rouge_l,
    "lcc": code_similarity,
    "repobench-p": code_similarity,
}


def scorer_of(task: Task) -> Scorer:
    """The scorer of a task's answers."""
    if task.family == "needles":
        return share_found
    if task.family == "questions":
        return any_found
    scorer = LONGBENCH[task.name]
    return on_first_line(scorer) if task.first_line else scorer


def _normalised(text: str) -> list[str]:
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def _f1(answer: list[str], accepted: list[str]) -> float:
    common = sum((Counter(answer) & Counter(accepted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(answer), common / len(accepted)
    return 2 * precision * recall / (precision + recall)


@cache
def _rouge():
    from rouge import Rouge

    return Rouge(metrics=["rouge-l"])


@contextmanager
def _deep_recursion(characters: int) -> Iterator[None]:
    """Raise the recursion limit for a text: the package recurses over words, and each character may be one."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, characters + 1000))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
