"""The headline scores of a table of arms: at most six columns, chosen from the metrics that the arms have.

Two losses: on documents (`val` first), and after the marks of recall exercises if there are any. The needles at their
longest length, the mean over all needles, over the questions, over LongBench. lm-eval's scores fill what room is left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from refine.data.prompts.tasks import TASKS
from refine.reports.arms import Arm, MetricColumn, metric_column, table
from refine.reports.paper_columns import GROUPS, QUESTIONS
from refine.reports.paper_tables import Table

MOST = 6  # columns that fit on 80 columns of a terminal
LOSSES, VAL = 2, "val/loss"
PERCENT = {"scale": 100.0, "digits": 0}
SCORE = re.compile(r"eval/([^/]+)/(\d+)/score")
OTHER_SCORE = re.compile(r"eval/([^/]+)/([^/]+)/score")

Key = tuple[str, int]  # task and length


def headline(arms: Sequence[Arm]) -> Table:
    """The table of the arms' headline scores."""
    return table(arms, columns([name for one in arms for name in one.estimates]))


def values_of(made: Table) -> dict[str, float]:
    """Each value of a headline table by the name `PHASE-ARM/METRIC`, as in `mid-refine/val/loss`."""
    return {
        f"{'-'.join(part for part in (row.phase, row.arm) if part)}/{getattr(column, 'name', column.title)}": one.value
        for row in made.rows
        for column, cell in zip(made.columns, row.cells, strict=True)
        if (one := cell.estimate) is not None
    }


def columns(metrics: Iterable[str]) -> list[MetricColumn]:
    """The headline columns for these metrics."""
    names = list(dict.fromkeys(metrics))
    keys = [(found[1], int(found[2])) for name in names if (found := SCORE.fullmatch(name)) and found[1] in TASKS]
    of = {family: [key for key in keys if TASKS[key[0]].family == family] for family in _families()}
    marked = [name for name in names if re.fullmatch(r"[^/]+/marked_loss", name)]
    whole = [name for name in _losses(names) if name.replace("/loss", "/marked_loss") not in marked or name == VAL]
    first = sorted(whole, key=lambda name: name != VAL)[: LOSSES - len(marked[:1])]
    losses = [_loss(name) for name in [*first, *marked[:1]]]
    means = [_mean(of[family], family) for family in _families() if of[family]]
    chosen = [*losses, *_longest_needles(of["needles"], MOST - len(losses) - len(means)), *means]
    others = [one for name in names if (one := OTHER_SCORE.fullmatch(name)) and not one[2].isdigit()]
    more = [metric_column([one[0]], f"{one[1]}\n{one[2]}\n%", **PERCENT) for one in others]  # type: ignore[arg-type]
    return [*chosen, *more][:MOST]


def _families() -> list[str]:
    return list(dict.fromkeys(task.family for task in TASKS.values()))


def _losses(names: Iterable[str]) -> list[str]:
    return [name for name in names if re.fullmatch(r"[^/]+/loss", name)]


def _loss(name: str) -> MetricColumn:
    """`second_domain/loss` is called `second / domain / loss`, a word a line."""
    return metric_column([name], name.replace("/", "\n").replace("_", "\n"))


def _longest_needles(keys: Sequence[Key], room: int) -> list[MetricColumn]:
    """A column for each needle task at its longest length; for each of RULER's groups if the tasks are too many; none
    if the groups are too many, or if there is only one task and length, which is its own mean."""
    longest = {task: max(length for name, length in keys if name == task) for task, _ in keys}
    if len(keys) < 2:
        return []
    if len(longest) <= room:
        return [_mean([(task, length)], "needles") for task, length in longest.items()]
    groups = {
        group: [(task, length) for task, length in longest.items() if task.startswith(prefix)]
        for group, prefix in GROUPS.items()
    }
    found = {group: members for group, members in groups.items() if members}
    if len(found) > room:
        return []
    return [_mean(members, GROUPS[group].removeprefix("niah_")) for group, members in found.items()]


def _mean(keys: Sequence[Key], what: str) -> MetricColumn:
    """The mean over tasks and lengths; called as the task and its length if there is only one."""
    metrics = [f"eval/{task}/{length}/score" for task, length in keys]
    lengths = sorted({length for _, length in keys})
    if len(keys) == 1:
        task = QUESTIONS.get(keys[0][0], keys[0][0].removeprefix("niah_"))
        return metric_column(metrics, f"{task}\n{lengths[0]}\n%", **PERCENT)  # type: ignore[arg-type]
    where = "mean" if len(lengths) > 1 else str(lengths[0])
    name = f"mean/{what}/score" if len(lengths) > 1 else f"mean/{what}/{lengths[0]}/score"
    return metric_column(metrics, f"{what}\n{where}\n%", name, **PERCENT)  # type: ignore[arg-type]
