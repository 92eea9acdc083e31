"""Registered versions side by side: their scores with counts and intervals, and the settings in which they differ."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refine.evaluation.intervals import Estimate
from refine.metric_names import TRAINING, count_of, smaller_is_better
from refine.reports.cells import NOTHING, Cell, Row, mark_best, markdown_table
from refine.tracking.registry import Version
from refine.tracking.tags import CODE, COMMIT, DATA, EVALUATION, EXPERIMENT

# The metrics of a comparison, in this order. Counts and interval bounds stand beside the metric they belong to.
SHOWN = (
    r"val/loss",
    r"val/accuracy",
    r"[^/]+/loss",
    r"[^/]+/marked_loss",
    r"[^/]+/accuracy",
    r"[^/]+(/prompts)?/reward/[^/]+/mean",
    r"eval/.+/score",
    r"eval/.+/log_prob",
    r"eval/.+/adapt_seconds",
)
WIDE = 4  # versions that fit beside each other
DIGITS = 4
TAGS = {EXPERIMENT: "experiment", EVALUATION: "scored on", DATA: "data", COMMIT: "commit", CODE: "code"}


@dataclass(frozen=True)
class Comparison:
    """Versions, a row for each metric, and the settings and data in which they differ: name, text for each version."""

    versions: tuple[Version, ...]
    rows: tuple[Row, ...]
    differing: tuple[tuple[str, tuple[str, ...]], ...]

    def headers(self) -> list[str]:
        """For each version its number, phase and arm, and the champion's mark."""
        return [f"{one.label}{' champion' if one.is_champion else ''}" for one in self.versions]

    def table(self) -> list[list[str]]:
        """Header and lines of text, the same number in each."""
        differing = [[name, "", *values] for name, values in self.differing]
        return [*_lines(self.headers(), self.rows), *differing]

    def markdown(self) -> str:
        """Markdown tables whose columns line up: one, or one for each phase if one would be too wide."""
        phases = list(dict.fromkeys(version.phase for version in self.versions))
        if len(self.versions) <= WIDE or len(phases) == 1:
            return markdown_table(self.table(), aligned=True)
        parts = [self._of([n for n, one in enumerate(self.versions) if one.phase == phase]) for phase in phases]
        return "\n\n".join(markdown_table(part.table(), aligned=True) for part in parts)

    def _of(self, chosen: Sequence[int]) -> Comparison:
        """The columns `chosen` alone; the best stays the best of all."""
        rows = [Row(row.label, tuple(row.cells[n] for n in chosen)) for row in self.rows]
        rows = [row for row in rows if any(cell.estimate for cell in row.cells)]
        differing = [(name, tuple(values[n] for n in chosen)) for name, values in self.differing]
        differing = [(name, values) for name, values in differing if _differ(values)]
        return Comparison(tuple(self.versions[n] for n in chosen), tuple(rows), tuple(differing))


def compare(versions: Sequence[Version]) -> Comparison:
    """The comparison of these versions, in their order."""
    return Comparison(tuple(versions), _rows(_comparable(versions)), tuple(_differing(versions)))


def _comparable(versions: Sequence[Version]) -> list[dict[str, float]]:
    """The metrics of each version. Extra scores count where another version has the metric from as many samples, or
    where there is one version alone: an extra evaluation of one version adds no row to a comparison."""
    known = [{**one.extra, **one.metrics} for one in versions]
    found = []
    for n, version in enumerate(versions):
        others = [one for m, one in enumerate(known) if m != n]
        extra = {
            name
            for name in version.extra.keys() - version.metrics.keys()
            if not others or any(name in one and count_of(one, name) == count_of(known[n], name) for one in others)
        }
        bounds = {f"{name}{end}" for name in extra for end in ("_low", "_high")}
        kept = version.metrics.keys() | extra | bounds
        found.append({name: value for name, value in known[n].items() if name in kept})
    return found


def estimates_of(metrics: Mapping[str, float]) -> dict[str, Estimate]:
    """The metrics that are shown, in their order, with counts and intervals."""
    return {name: one for name in _shown(metrics) if (one := _estimate(metrics, name)) is not None}


def _lines(titles: Iterable[str], rows: Iterable[Row]) -> list[list[str]]:
    """Header and lines of text. The best of a row is bold."""

    def text(cell: Cell) -> str:
        if cell.estimate is None:
            return NOTHING
        value = cell.estimate.value_text(digits=DIGITS)
        return f"{f'**{value}**' if cell.best else value} {cell.estimate.interval_text(digits=DIGITS)}".rstrip()

    lines = [[row.label, _samples_text(row), *map(text, row.cells)] for row in rows]
    return [["metric", "samples", *titles], *lines]


def _samples_text(row: Row) -> str:
    """The number of samples that the values are means over; each number if they differ."""
    return " / ".join(dict.fromkeys(str(one.samples) for cell in row.cells if (one := cell.estimate) and one.samples))


def _rows(columns: Sequence[Mapping[str, float]]) -> tuple[Row, ...]:
    names = _shown(name for metrics in columns for name in metrics)
    return tuple(
        Row(name, mark_best([Cell(_estimate(metrics, name)) for metrics in columns], smaller_is_better(name)))
        for name in names
    )


def _estimate(metrics: Mapping[str, float], name: str) -> Estimate | None:
    """The metric with its interval and count (0: not known); None where it is missing."""
    if name not in metrics:
        return None
    return Estimate(metrics[name], count_of(metrics, name), metrics.get(f"{name}_low"), metrics.get(f"{name}_high"))


def _shown(names: Iterable[str]) -> list[str]:
    found = {name for name in names if not name.startswith(TRAINING)}
    ranks = {
        name: rank for rank, shown in reversed(list(enumerate(SHOWN))) for name in found if re.fullmatch(shown, name)
    }
    return sorted(ranks, key=lambda name: (ranks[name], _natural(name)))


def _natural(name: str) -> list[Any]:
    """Sorts 512 before 1024."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", name)]


def _differing(versions: Sequence[Version]) -> Iterable[tuple[str, tuple[str, ...]]]:
    """Settings, data and code that are not the same in all versions."""
    if len(versions) < 2:
        return
    for name in dict.fromkeys(name for version in versions for name in version.settings if name != "arm"):
        texts = tuple(str(version.settings.get(name, NOTHING)) for version in versions)
        if _differ(texts):
            yield name, texts
    for tag, title in TAGS.items():
        texts = tuple(version.tags.get(tag, NOTHING)[:12] for version in versions)
        if len(set(texts)) > 1:
            yield title, texts


def _differ(texts: Iterable[str]) -> bool:
    """Whether settings differ. A setting that an arm does not have is no difference."""
    return len(set(texts) - {NOTHING}) > 1
