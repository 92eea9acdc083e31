"""An evaluation as a picture: scores with their intervals, and the loss along the context."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refine.evaluation.record import Evaluation
from refine.system.files import write_picture


def draw(evaluations: Sequence[Evaluation], path: str | Path) -> Path:
    """Scores of each task and length, one bar a model, and next-token loss by position; whole or not at all.

    The file's ending says its form (.png, .svg, .pdf).
    """
    from matplotlib.figure import Figure

    path = Path(path)
    curves = list(dict.fromkeys(name for one in evaluations for name in one.next_token))
    scores = any(one.tasks for one in evaluations)
    figure = Figure(figsize=(6.4 * (len(curves) + scores), 4.2), layout="constrained")
    axes = list(figure.subplots(1, len(curves) + scores, squeeze=False)[0])
    if scores:
        _bars(axes.pop(0), evaluations)
    for axis, name in zip(axes, curves, strict=True):
        _curve(axis, evaluations, name)
    return write_picture(path, figure, dpi=110)


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
            if score.low is not None and score.high is not None:
                axis.vlines(at, score.low, score.high, color="black", linewidth=1)
    axis.set_xticks(
        range(len(names)), [f"{task} {length}" for task, length in names], rotation=30, ha="right", fontsize=7
    )
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
