"""Registered versions side by side: their scores with counts and intervals, and the settings in which they differ."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refine.metric_names import COUNTED_BY, TRAINING, smaller_is_better
from refine.tracking.registry import Version
from refine.tracking.tags import EVALUATION

# What is compared, in this order; counts and interval bounds are shown with the metric they belong to.
SHOWN = (
    r"val/loss",
    r"val/accuracy",
    r"[^/]+/loss",
    r"[^/]+/accuracy",
    r"[^/]+/reward/[^/]+/mean",
    r"eval/.+/score",
    r"eval/.+/log_prob",
    r"eval/.+/adapt_seconds",
    r"harness/.+",
)
WIDE = 4  # versions that fit beside each other


@dataclass(frozen=True)
class Cell:
    """A version's value of a metric; None where it has none. low, high: 95 % interval."""

    value: float | None
    low: float | None = None
    high: float | None = None
    best: bool = False

    def text(self, intervals: bool) -> str:
        """As it is printed: four digits, the interval in brackets, a star at the best."""
        if self.value is None:
            return "–"
        span = f" [{self.low:.4f}, {self.high:.4f}]" if intervals and None not in (self.low, self.high) else ""
        return f"{self.value:.4f}{span}{' *' if self.best else ''}"


@dataclass(frozen=True)
class Row:
    """A metric. samples: what its scores are means over, as a text (one number, or each that some version has)."""

    metric: str
    samples: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Comparison:
    """Versions, the metrics they have, and the settings and data in which they differ (name -> a text a version)."""

    versions: tuple[Version, ...]
    rows: tuple[Row, ...]
    differing: tuple[tuple[str, tuple[str, ...]], ...]

    def headers(self) -> list[str]:
        """One a version: number, arm, and the champion's mark."""
        return [f"{one.label}{' champion' if one.is_champion else ''}" for one in self.versions]

    def table(self, intervals: bool = True) -> list[list[str]]:
        """Header and lines of text, the same number in each."""
        lines = [["metric", "samples", *self.headers()]]
        lines += [[row.metric, row.samples, *(cell.text(intervals) for cell in row.cells)] for row in self.rows]
        lines += [[name, "", *values] for name, values in self.differing]
        return lines

    def markdown(self) -> str:
        """Markdown tables whose columns line up: one, or where it would be too wide, one a phase."""
        phases = list(dict.fromkeys(version.phase for version in self.versions))
        if len(self.versions) <= WIDE or len(phases) == 1:
            return _aligned(self.table())
        parts = [self._of([n for n, one in enumerate(self.versions) if one.phase == phase]) for phase in phases]
        return "\n\n".join(_aligned(part.table()) for part in parts)

    def _of(self, chosen: Sequence[int]) -> Comparison:
        """The columns `chosen` alone; the best stays the best of all."""
        rows = [Row(row.metric, row.samples, tuple(row.cells[n] for n in chosen)) for row in self.rows]
        rows = [row for row in rows if any(cell.value is not None for cell in row.cells)]
        differing = [(name, tuple(values[n] for n in chosen)) for name, values in self.differing]
        told = [(name, values) for name, values in differing if len(set(values) - {"–"}) > 1]
        return Comparison(tuple(self.versions[n] for n in chosen), tuple(rows), tuple(told))

    def csv(self) -> str:
        """Long form, for programs: metric, version, arm, value, low, high, samples, champion."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["metric", "version", "arm", "value", "low", "high", "samples", "champion"])
        for row in self.rows:
            for version, cell in zip(self.versions, row.cells, strict=True):
                samples = _samples(version.metrics, row.metric)
                writer.writerow(
                    [row.metric, version.number, version.arm, *(_plain(x) for x in (cell.value, cell.low, cell.high)),
                     _plain(samples), str(version.is_champion).lower()]
                )  # fmt: skip
        return text.getvalue()


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Header and lines of text, the same number in each, as a Markdown table whose columns line up."""
    head, *body = lines
    widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |"
        for line in (head, rule, *body)
    )


def compare(versions: Sequence[Version]) -> Comparison:
    """The comparison of these versions, in their order."""
    names = _shown(name for version in versions for name in version.metrics)
    rows = tuple(_row(name, [version.metrics for version in versions]) for name in names)
    return Comparison(tuple(versions), rows, tuple(_differing(versions)))


def side_by_side(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Metrics that are no versions' (title -> metrics) as a Markdown table whose columns line up."""
    rows = [_row(name, list(columns.values())) for name in _shown(name for one in columns.values() for name in one)]
    lines = [[row.metric, row.samples, *(cell.text(intervals=True) for cell in row.cells)] for row in rows]
    return _aligned([["metric", "samples", *columns], *lines])


def _shown(names: Iterable[str]) -> list[str]:
    found = {name for name in names if not name.startswith(TRAINING)}
    ranks = {
        name: rank for rank, shown in reversed(list(enumerate(SHOWN))) for name in found if re.fullmatch(shown, name)
    }
    return sorted(ranks, key=lambda name: (ranks[name], _natural(name)))


def _natural(name: str) -> list[Any]:
    """Sorts 512 before 1024."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", name)]


def _row(metric: str, columns: Sequence[Mapping[str, float]]) -> Row:
    values = [metrics.get(metric) for metrics in columns]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    best = (min if smaller_is_better(metric) else max)(finite, default=None)
    told = len(finite) > 1 and len(set(finite)) > 1
    cells = tuple(
        Cell(
            value,
            metrics.get(f"{metric}_low"),
            metrics.get(f"{metric}_high"),
            told and value == best,
        )
        for metrics, value in zip(columns, values, strict=True)
    )
    counts = dict.fromkeys(_samples(metrics, metric) for metrics in columns)
    return Row(metric, " / ".join(_plain(count) for count in counts if count is not None), cells)


def _samples(metrics: Mapping[str, float], metric: str) -> float | None:
    if "/reward/" in metric:
        return metrics.get(f"{metric.partition('/')[0]}/rollouts")
    prefix, _, which = metric.rpartition("/")
    return metrics.get(f"{prefix}/{COUNTED_BY[which]}") if which in COUNTED_BY else None


def _plain(value: float | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if float(value).is_integer() else repr(value)


def _differing(versions: Sequence[Version]) -> Iterable[tuple[str, tuple[str, ...]]]:
    """Settings, data and code that are not the same in all versions."""
    if len(versions) < 2:
        return
    for name in dict.fromkeys(name for version in versions for name in version.settings if name != "arm"):
        texts = tuple(str(version.settings[name]) if name in version.settings else "–" for version in versions)
        if len(set(texts) - {"–"}) > 1:  # a setting that an arm has no use for is no difference
            yield name, texts
    for tag, title in (
        ("experiment", "experiment"),
        (EVALUATION, "scored on"),
        ("identity.data", "data"),
        ("identity.commit", "commit"),
        ("identity.code", "code"),
    ):
        texts = tuple(version.tags.get(tag, "–")[:12] for version in versions)
        if len(set(texts)) > 1:
            yield title, texts
