"""Scorers: an answer (generated text) and the accepted answers in, a score from 0 to 1 out.

Those of LongBench (THUDM/LongBench, metrics.py and eval.py, MIT) score as published, apart from what each docstring
says; the best over the accepted answers counts. Those of RULER (arXiv 2404.06654) look for the accepted answers in the
whole of the text, so that an answer that starts with a newline is counted right.
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

# The classes of LongBench's trec, as its rows spell them. None is part of another's name.
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
    """RULER's score of needles: the share of the expected values that occur in the answer, whatever their case."""
    return sum(value.lower() in answer.lower() for value in accepted) / len(accepted)


def any_found(answer: str, accepted: Sequence[str]) -> float:
    """RULER's score of questions: 1 if any accepted answer occurs in the answer, whatever its case.

    lm-eval 0.4.13's string_match_part gives the share of the accepted answers instead.
    """
    return float(any(value.lower() in answer.lower() for value in accepted))


def first_line(answer: str) -> str:
    """What trec, triviaqa and samsum are scored on: the first line after leading newlines."""
    return answer.lstrip("\n").split("\n")[0]


def token_f1(answer: str, accepted: Sequence[str]) -> float:
    """LongBench's F1 of words, without case, punctuation and articles (SQuAD's normalisation)."""
    return max(_f1(_normalised(answer), _normalised(value)) for value in accepted)


def rouge_l(answer: str, accepted: Sequence[str]) -> float:
    """LongBench's ROUGE-L F (package rouge 1.0.1); an answer without words scores 0.

    A text so long that the package's recursion ends in an error is scored here, where the published scorer gives 0.
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
    """LongBench's trec: 1 / the number of classes that the answer names, if the right one is among them."""
    named = [name for name in classes if name in answer]
    return max(1 / len(named) if value in named else 0.0 for value in accepted)


def code_similarity(answer: str, accepted: Sequence[str]) -> float:
    """LongBench's code score: how like the next line is the first line without a backtick, # or //."""
    lines = answer.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return max(round(100 * difflib.SequenceMatcher(None, line, value).ratio()) / 100 for value in accepted)


def on_first_line(scorer: Scorer) -> Scorer:
    """`scorer`, given the answer's first line only."""

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
    """What the answers of `task` are scored by."""
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
    """The package finds common subsequences by recursion over words; each of a text's characters may be one."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, characters + 1000))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
