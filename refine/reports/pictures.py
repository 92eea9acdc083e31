"""Results as pictures: the paper's tables, an evaluation. The file's ending gives its form (.png, .svg,
.pdf)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refine.evaluation.intervals import Estimate
from refine.system.files import write_picture

if TYPE_CHECKING:
    from refine.evaluation.record import Evaluation
    from refine.reports.paper_tables import Table


def draw_tables(tables: Sequence[Table], path: str | Path) -> Path:
    """A panel for each table: its columns along the axis, a point and its interval for each arm. Returns the path."""
    width = max(7.0, max(1.1 * len(table.columns) + 2 for table in tables))
    figure, axes = _panels(len(tables), 1, (min(width, 24.0), 3.4 * len(tables)))
    labels = list(dict.fromkeys(row.label for table in tables for row in table.rows))
    for axis, table in zip(axes.flat, tables, strict=True):
        _table(axis, table, labels)
    return write_picture(path, figure, dpi=110)


def draw_evaluations(evaluations: Sequence[Evaluation], path: str | Path) -> Path:
    """The scores of each task and length, a bar for each model, and the loss by position in the context.

    Returns the path.
    """
    curves = list(dict.fromkeys(name for one in evaluations for name in one.next_token))
    scores = any(one.tasks for one in evaluations)
    panels = len(curves) + scores
    figure, axes = _panels(1, panels, (6.4 * panels, 4.2))
    if scores:
        _bars(axes.flat[0], evaluations)
    for axis, name in zip(axes.flat[scores:], curves, strict=True):
        _curve(axis, evaluations, name)
    return write_picture(path, figure, dpi=110)


def _panels(lines: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """(figure, axes [lines, columns])."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(lines, columns, squeeze=False, **options)


def reach(estimates: Sequence[Estimate], scales: Sequence[float]) -> list[list[float]]:
    """How far each interval reaches [below, above] its value; 0 without one, or if rounding put the bound beyond it."""
    pairs = list(zip(estimates, scales, strict=True))
    below = [scale * max(one.value - (one.value if one.low is None else one.low), 0.0) for one, scale in pairs]
    above = [scale * max((one.value if one.high is None else one.high) - one.value, 0.0) for one, scale in pairs]
    return [below, above]


def _table(axis: Any, table: Table, labels: Sequence[str]) -> None:
    for n, row in enumerate(table.rows):
        shift = 0.7 * ((n + 0.5) / len(table.rows) - 0.5)
        found = [(place, cell.estimate) for place, cell in enumerate(row.cells) if cell.estimate is not None]
        scales = [table.columns[place].scale for place, _ in found]
        values = [scale * one.value for scale, (_, one) in zip(scales, found, strict=True)]
        reaches = reach([one for _, one in found], scales)
        color = f"C{labels.index(row.label) % 10}"
        at = [place + shift for place, _ in found]
        axis.errorbar(at, values, yerr=reaches, fmt="o", markersize=4, linewidth=1, color=color, label=row.label)
    _name_places(axis, [column.title for column in table.columns], rotation=25)
    axis.set_title(table.title, fontsize=9)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _bars(axis: Any, evaluations: Sequence[Evaluation]) -> None:
    names = list(dict.fromkeys((task.task, task.length) for one in evaluations for task in one.tasks))
    width = 0.8 / len(evaluations)
    for i, one in enumerate(evaluations):
        found = {(task.task, task.length): task.score for task in one.tasks}
        for place, name in enumerate(names):
            if name not in found:
                continue
            score, at = found[name], place + (i - (len(evaluations) - 1) / 2) * width
            axis.bar(at, score.value, width * 0.95, color=f"C{i}", label=one.model if place == 0 else None)
            if score.interval is not None:
                axis.vlines(at, *score.interval, color="black", linewidth=1)
    _name_places(axis, [f"{task} {length}" for task, length in names], rotation=30)
    axis.set(ylabel="score", ylim=(0, 1), title="scores, with 95 % intervals")
    if len(evaluations) > 1:
        axis.legend(fontsize=7)


def _curve(axis: Any, evaluations: Sequence[Evaluation], name: str) -> None:
    for one in evaluations:
        if name in one.next_token:
            bins = one.next_token[name].by_position
            places = [(b.first * b.last) ** 0.5 for b in bins]
            (line,) = axis.plot(places, [b.loss for b in bins], marker="o", label=one.model)
            spans = [(place, *b.loss_interval) for place, b in zip(places, bins, strict=True) if b.loss_interval]
            if spans:
                axis.fill_between(*zip(*spans, strict=True), color=line.get_color(), alpha=0.15, linewidth=0)
    axis.set(xscale="log", xlabel="position in the context [tokens]", ylabel="loss [nats/token]", title=name)
    if len(evaluations) > 1:
        axis.legend(fontsize=7)


def _name_places(axis: Any, names: Sequence[str], rotation: float) -> None:
    axis.set_xticks(range(len(names)), names, rotation=rotation, ha="right", fontsize=7)
