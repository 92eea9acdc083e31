"""How the rewards of held-out rollouts are spread: counts in fixed bins at every validation, as a table and a picture.

The counts are in the series like every metric (`val/reward/KIND/histogram`, a list), so they survive a resume with it.
"""

from __future__ import annotations

import csv
import itertools
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from refine.system.files import file_beside, write_picture

WIDTH = 0.05  # of a bin
RANGES = {"cosine": (-1.0, 1.0), "binary": (0.0, 1.0), "hybrid": (-1.0, 2.0)}  # the values that a reward can have
SUFFIX = "/histogram"
OFTEN = 60.0  # seconds between two pictures while training goes on
log = logging.getLogger(__name__)


def bins(kind: str) -> int:
    """The number of bins that the range of a reward is cut into."""
    low, high = RANGES[kind]
    return round((high - low) / WIDTH)


def counts(rewards: Tensor, kind: str) -> list[int]:
    """How many of `rewards` [any shape] fall into each bin of their kind, which holds its lower edge and not its upper
    one; the last holds both. What is not finite is in none."""
    found = rewards[rewards.isfinite()].double().flatten()
    # A value on an edge (binary rewards are multiples of 1/k) may have been rounded to just below it.
    places = ((found - RANGES[kind][0]) / WIDTH + 1e-4).floor().long().clamp(0, bins(kind) - 1)
    return [int(count) for count in torch.bincount(places, minlength=bins(kind))]


@dataclass(frozen=True)
class Histogram:
    """Rewards of `kind` on the held-out data `part` after `step` optimizer steps; counts: rollouts in each bin."""

    part: str
    kind: str
    step: int
    counts: tuple[int, ...]
    mean: float

    @property
    def edges(self) -> list[float]:
        """Of the bins: one more than there are counts."""
        return [round(RANGES[self.kind][0] + WIDTH * n, 10) for n in range(len(self.counts) + 1)]


def histograms(rows: Iterable[Mapping[str, Any]]) -> list[Histogram]:
    """All that are in logged rows, in their order."""
    found = []
    for row in rows:
        for name, value in row.items():
            part, _, kind = name.removesuffix(SUFFIX).partition("/reward/")
            if name.endswith(SUFFIX) and kind in RANGES:
                mean = row.get(f"{part}/reward/{kind}/mean", float("nan"))
                found.append(Histogram(part, kind, int(row["step"]), tuple(value), float(mean)))
    return found


def write(rows: Iterable[Mapping[str, Any]], folder: Path) -> list[Path]:
    """The table and the picture of the histograms in `rows`, in `folder`, each whole or not at all; none of them where
    there are no histograms."""
    found = histograms(rows)
    if not found:
        return []
    table, picture = folder / HISTOGRAM_TABLE, folder / HISTOGRAM_PICTURE
    with file_beside(table) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["data", "reward", "step", "low", "high", "rollouts"])
        for one in found:
            for (low, high), count in zip(itertools.pairwise(one.edges), one.counts, strict=True):
                writer.writerow([one.part, one.kind, one.step, low, high, count])
    _draw(found, picture)
    return [table, picture]


def _draw(found: Sequence[Histogram], path: Path) -> None:
    """A panel for each kind of reward and held-out data: steps to the right, rewards upwards, the share of rollouts as
    colour, the mean as a line."""
    from matplotlib.figure import Figure

    parts, kinds = (list(dict.fromkeys(names)) for names in zip(*((one.part, one.kind) for one in found), strict=True))
    figure = Figure(figsize=(4.6 * len(kinds), 0.4 + 3.4 * len(parts)), layout="constrained")
    panels = figure.subplots(len(parts), len(kinds), squeeze=False)
    for part, line in zip(parts, panels, strict=True):
        for kind, axis in zip(kinds, line, strict=True):
            own = {one.step: one for one in found if (one.part, one.kind) == (part, kind)}
            if own:
                drawn = _panel(axis, [own[step] for step in sorted(own)])
                figure.colorbar(drawn, ax=axis, label="share of rollouts")
            axis.set(title=f"{part}: {kind} reward", xlabel="step", ylabel="reward")
    write_picture(path, figure, dpi=110)


def _panel(axis: Any, found: Sequence[Histogram]) -> Any:
    steps, edges = [one.step for one in found], found[0].edges
    shares = [[count / max(sum(one.counts), 1) for count in one.counts] for one in found]
    drawn = axis.pcolormesh(_around(steps), edges, list(zip(*shares, strict=True)), cmap="viridis", vmin=0.0)
    axis.plot(steps, [one.mean for one in found], color="white", linewidth=1, marker=".", markersize=4, label="mean")
    held = [n for n in range(len(edges) - 1) if any(one.counts[n] for one in found)]
    if held:
        axis.set_ylim(edges[held[0]], edges[held[-1] + 1])
    axis.legend(fontsize=7, labelcolor="white", facecolor="0.3", framealpha=0.6)
    return drawn


def _around(steps: Sequence[int]) -> list[float]:
    """Edges of columns with these (rising) steps inside them: half way to the neighbour."""
    if len(steps) == 1:
        return [steps[0] - 0.5, steps[0] + 0.5]
    between = [(left + right) / 2 for left, right in itertools.pairwise(steps)]
    return [2 * steps[0] - between[0], *between, 2 * steps[-1] - between[-1]]


class RewardHistograms(TrainerCallback):
    """Keeps the table and the picture in OUTPUT: anew at the end, and at a validation where they are a minute old."""

    def __init__(self, output: Path) -> None:
        self.output, self.written = output, time.monotonic()

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write them, if the last time is long ago."""
        if time.monotonic() - self.written >= OFTEN:
            self._write(state)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write them."""
        self._write(state)

    def _write(self, state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        try:
            write(state.log_history, self.output)
        except OSError as error:  # a picture is not worth a training: the counts are in the series
            told = "%s was not drawn (%s); its counts are in metrics.jsonl"
            log.warning(told, self.output / HISTOGRAM_PICTURE, error)
        self.written = time.monotonic()


HISTOGRAM_TABLE, HISTOGRAM_PICTURE = "reward_histograms.csv", "reward_histograms.png"
