"""The paper's tables and their columns: which scores of an evaluation each column shows.

Needles by group and length, questions, LongBench with the average of the paper's twelve tasks, log-probabilities of the
answers, next-token loss, and the loss by position in the context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from refine.data.prompts.tasks import PAPER_LONGBENCH, TASKS
from refine.evaluation.record import Evaluation, TaskScore

GROUPS = {"S": "niah_single", "MK": "niah_multikey", "MQ": "niah_multiquery", "MV": "niah_multivalue"}
QUESTIONS = {"ruler_squadqa": "SQuADQA", "ruler_hotpotqa": "HotpotQA", "factsqa": "FactsQA"}

Stratum = tuple[float, ...]
Values = Callable[[Evaluation], list[Stratum] | None]


@dataclass(frozen=True)
class Column:
    """values: of each task that the column averages, one for each sample; None if a task is missing."""

    title: str
    values: Values
    scale: float = 100.0
    digits: int = 1
    less_is_better: bool = False


def _scores(wanted: Sequence[tuple[str, int]]) -> Values:
    """The scores of each of these tasks and lengths."""

    def values(evaluation: Evaluation) -> list[Stratum] | None:
        found = {(task.task, task.length): task.scores for task in evaluation.tasks}
        return [found[key] for key in wanted] if all(key in found for key in wanted) else None

    return values


def _keys(evaluations: Sequence[Evaluation], wanted: Callable[[TaskScore], bool]) -> list[tuple[str, int]]:
    """The tasks and lengths that any evaluation has, by length, then in the order of `TASKS`."""
    keys = {(task.task, task.length) for one in evaluations for task in one.tasks if wanted(task)}
    return sorted(keys, key=lambda key: (key[1], list(TASKS).index(key[0])))


def _needles(evaluations: Sequence[Evaluation]) -> list[Column]:
    columns = []
    for title, prefix in GROUPS.items():
        keys = _keys(evaluations, lambda task, prefix=prefix: task.task.startswith(prefix))  # type: ignore[misc]
        lengths = sorted({length for _, length in keys})
        columns += [
            Column(f"{title} {length}", _scores([key for key in keys if key[1] == length])) for length in lengths
        ]
        if len(lengths) > 1:
            columns.append(Column(f"{title} average", _scores(keys)))
    return columns


def _questions(evaluations: Sequence[Evaluation]) -> list[Column]:
    columns = []
    for task, title in QUESTIONS.items():
        keys = _keys(evaluations, lambda one, task=task: one.task == task)  # type: ignore[misc]
        columns += [Column(f"{title} {length}", _scores([(task, length)])) for _, length in keys]
        if len(keys) > 1:
            columns.append(Column(f"{title} average", _scores(keys)))
    return columns


def _longbench(evaluations: Sequence[Evaluation]) -> list[Column]:
    columns = []
    keys = _keys(evaluations, lambda task: TASKS[task.task].family == "longbench")
    for length in sorted({length for _, length in keys}):
        tasks = [task for task, at in keys if at == length]
        columns += [Column(f"{task} {length}", _scores([(task, length)])) for task in tasks]
        averaged = [(task, length) for task in tasks if task in PAPER_LONGBENCH]
        if len(averaged) > 1:
            columns.append(Column(f"average of {len(averaged)} at {length}", _scores(averaged)))
    return columns


def _log_probs(evaluations: Sequence[Evaluation]) -> list[Column]:
    def values(key: tuple[str, int]) -> Values:
        return lambda one: next(([task.log_probs] for task in one.tasks if (task.task, task.length) == key), None)

    keys = _keys(evaluations, lambda task: True)
    return [Column(f"{task} {length}", values((task, length)), 1.0, 3) for task, length in keys]


def _costs(evaluations: Sequence[Evaluation]) -> list[Column]:
    def values(key: tuple[str, int]) -> Values:
        def mean(one: Evaluation) -> list[Stratum] | None:
            found = [task.adapt_seconds for task in one.tasks if (task.task, task.length) == key and task.adapt_seconds]
            return [tuple(found)] if found else None

        return mean

    keys = _keys(evaluations, lambda task: task.adapt_seconds > 0)
    return [Column(f"{task} {length}", values((task, length)), 1.0, 3, less_is_better=True) for task, length in keys]


def _next_token(evaluations: Sequence[Evaluation]) -> list[Column]:
    def losses(name: str) -> Values:
        return lambda one: [one.next_token[name].sequence_losses] if name in one.next_token else None

    def at_marks(name: str) -> Values:
        def values(one: Evaluation) -> list[Stratum] | None:
            found = one.next_token[name].sequence_marked_losses if name in one.next_token else ()
            return [found] if found else None

        return values

    names = dict.fromkeys(name for one in evaluations for name in one.next_token)
    marked = [name for name in names if any(at_marks(name)(one) for one in evaluations)]
    return [
        *(Column(f"{name} loss", losses(name), 1.0, 4, less_is_better=True) for name in names),
        *(Column(f"{name} loss after marks", at_marks(name), 1.0, 4, less_is_better=True) for name in marked),
    ]


def _by_position(name: str) -> Callable[[Sequence[Evaluation]], list[Column]]:
    """The columns for the documents `name`, one for each range of positions."""

    def losses(first: int, last: int) -> Values:
        def values(one: Evaluation) -> list[Stratum] | None:
            bins = one.next_token[name].by_position if name in one.next_token else ()
            return next(([b.sequence_losses] for b in bins if (b.first, b.last) == (first, last)), None)

        return values

    def columns(evaluations: Sequence[Evaluation]) -> list[Column]:
        scores = [one.next_token[name] for one in evaluations if name in one.next_token]
        ranges = sorted({(b.first, b.last) for score in scores for b in score.by_position if b.sequence_losses})
        return [Column(f"{a}–{b}", losses(a, b), 1.0, 4, less_is_better=True) for a, b in ranges]

    return columns


TABLES: tuple[tuple[str, Callable[[Sequence[Evaluation]], list[Column]]], ...] = (
    ("Needles in a haystack (RULER): % of values found", _needles),
    ("Multi-document question answering: % answered", _questions),
    ("LongBench: score × 100", _longbench),
    ("Log-probability of the reference answer [nats per token]", _log_probs),
    ("What adapting to a prompt takes, on average [s]", _costs),
    ("Next-token prediction on held-out documents [nats per token]", _next_token),
)


def columns_of_tables(evaluations: Sequence[Evaluation]) -> Iterator[tuple[str, list[Column]]]:
    """Title and columns of each table for which the evaluations have scores."""
    names = dict.fromkeys(name for one in evaluations for name in one.next_token)
    by_position = (
        (f"Loss on {name} by position in the context [nats per token]", _by_position(name)) for name in names
    )
    for title, find in (*TABLES, *by_position):
        if columns := find(evaluations):
            yield title, columns
