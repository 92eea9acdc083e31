"""Histograms of the rewards of held-out rollouts, at every validation, as a table and a picture.

The counts are logged like every metric (`val/reward/KIND/histogram`, a list), so a resumed run keeps them.
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

from refine.errors import DataError
from refine.metric_names import HISTOGRAM_PICTURE, HISTOGRAM_TABLE, METRICS_FILE
from refine.objective.rewards import RANGES
from refine.system.files import file_beside, write_picture

WIDTH = 0.05  # of a bin
SUFFIX = "/histogram"
INTERVAL = 60.0  # seconds between two pictures during training
log = logging.getLogger(__name__)


def bins(kind: str) -> int:
    """The number of bins of a reward."""
    low, high = RANGES[kind]
    return round((high - low) / WIDTH)


def counts(rewards: Tensor, kind: str) -> list[int]:
    """How many of `rewards` [any shape] fall into each bin of their kind. A bin holds its lower edge, not its upper
    edge; the last bin holds both. Values that are not finite are not counted."""
    found = rewards[rewards.isfinite()].double().flatten()
    # Rounding may put a value on an edge (binary rewards are multiples of 1/k) just below it.
    places = ((found - RANGES[kind][0]) / WIDTH + 1e-4).floor().long().clamp(0, bins(kind) - 1)
    return [int(count) for count in torch.bincount(places, minlength=bins(kind))]


@dataclass(frozen=True)
class Histogram:
    """Rewards of `kind` on the held-out data `part` after `step` optimizer steps. counts: rollouts in each bin."""

    part: str
    kind: str
    step: int
    counts: tuple[int, ...]
    mean: float

    @property
    def edges(self) -> list[float]:
        """Edges of the bins, one more than counts."""
        return [round(RANGES[self.kind][0] + WIDTH * n, 10) for n in range(len(self.counts) + 1)]


def histograms(rows: Iterable[Mapping[str, Any]]) -> list[Histogram]:
    """All histograms in logged rows, in order."""
    found = []
    for row in rows:
        for name, value in row.items():
            part, _, kind = name.removesuffix(SUFFIX).partition("/reward/")
            if name.endswith(SUFFIX) and kind in RANGES:
                mean = row.get(f"{part}/reward/{kind}/mean")
                found.append(
                    Histogram(part, kind, int(row["step"]), tuple(value), float("nan" if mean is None else mean))
                )
    return found


def write(rows: Iterable[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write the table and the picture of the histograms in `rows` to `folder`, each complete or not at all. Returns
    their paths; without histograms it writes nothing and returns []."""
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
    """A panel for each reward and each held-out data set: x is the step, y the reward, colour the share of rollouts,
    and the line the mean."""
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
    """Edges of the columns of these (rising) steps: half way to the neighbours."""
    if len(steps) == 1:
        return [steps[0] - 0.5, steps[0] + 0.5]
    between = [(left + right) / 2 for left, right in itertools.pairwise(steps)]
    return [2 * steps[0] - between[0], *between, 2 * steps[-1] - between[-1]]


class RewardHistograms(TrainerCallback):
    """Writes the table and the picture to OUTPUT at the end, and at a validation if they are a minute old."""

    def __init__(self, output: Path) -> None:
        self.output, self.written = output, time.monotonic()

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write them if INTERVAL has passed."""
        if time.monotonic() - self.written >= INTERVAL:
            self._write(state)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write them."""
        self._write(state)

    def _write(self, state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        try:
            write(state.log_history, self.output)
        except (OSError, DataError) as error:  # training goes on without a picture: the counts are logged anyway
            picture = self.output / HISTOGRAM_PICTURE
            log.warning("%s was not drawn (%s); its counts are in %s", picture, error, METRICS_FILE)
        self.written = time.monotonic()
