"""A table of arms as a picture: arms down, a panel for each column, readable at a width of 800 pixels.

A phase has its colour and its baseline a line. Where an arm was paired with the baseline, its bar is the 95 % interval
of the difference, which takes out how hard each sample is; otherwise it is the interval of the value. A point is filled
if the difference is clear of zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refine.reports.paper_columns import Column
from refine.reports.paper_tables import PHASE_NAMES, ArmRow, Table
from refine.reports.pictures import reach
from refine.system.files import write_picture

WIDTH, DPI = 8.0, 100  # inches, dots an inch
ACROSS = 3  # panels beside each other
PERCENT = 100.0  # scale of a column of shares
LINE = 0.2  # inches a row of a panel is high
COLOURS = ("#3b6ea5", "#b5542c", "#6a4c93", "#5b6b3a")  # a phase each
SIZE = 8.5  # of the letters, in points: 12 pixels


def draw_arms(table: Table, path: str | Path) -> Path:
    """Write the picture; the ending of `path` gives its form (.png, .svg, .pdf). Returns the path."""
    from matplotlib.figure import Figure

    places = _places(table.rows)
    across = max(1, min(ACROSS, len(table.columns)))
    down = max(1, -(-len(table.columns) // across))
    height = down * (LINE * (max(places.values(), default=0) + 2) + 0.75) + 0.45
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=True)
    for n, axis in enumerate(axes.flat):
        if n < len(table.columns):
            _panel(axis, table, n, places)
        else:
            axis.set_axis_off()
    figure.supxlabel(_note(table), fontsize=SIZE, color="#444444")
    return write_picture(path, figure, dpi=DPI)


def _places(rows: Sequence[ArmRow]) -> dict[int, int]:
    """The place of each row from above, with an empty place for the name of each phase."""
    places: dict[int, int] = {}
    phases: list[str] = []
    for n, row in enumerate(rows):
        if row.phase not in phases:
            phases.append(row.phase)
        places[n] = n + len(phases)
    return places


def _panel(axis: Any, table: Table, n: int, places: dict[int, int]) -> None:
    column = table.columns[n]
    phases = list(dict.fromkeys(row.phase for row in table.rows))
    for m, row in enumerate(table.rows):
        colour = COLOURS[phases.index(row.phase) % len(COLOURS)]
        if getattr(row, "is_baseline", False):
            _baseline(axis, table, row, n, places, colour)
        if row.cells[n].estimate is not None:
            _point(axis, row, n, column, places[m], colour)
    axis.set_ylim(max(places.values(), default=0) + 0.6, -0.6)
    _bands(axis, table, places, phases)
    if n % ACROSS == 0:
        _names(axis, table, places, phases)
    axis.margins(x=0.08)
    if column.scale == PERCENT:  # a difference's interval may reach further than a share can
        low, high = axis.get_xlim()
        axis.set_xlim(max(low, -5.0), min(high, 105.0))
    axis.set_title(_title(column), fontsize=SIZE, loc="left")
    axis.tick_params(axis="x", labelsize=SIZE - 0.5)
    axis.locator_params(axis="x", nbins=4)
    axis.grid(axis="x", linewidth=0.4, alpha=0.5)


def _point(axis: Any, row: ArmRow, n: int, column: Column, place: int, colour: str) -> None:
    one, change = row.cells[n].estimate, row.cells[n].difference
    assert one is not None
    alone = not any(cell.difference for cell in row.cells) and not getattr(row, "is_baseline", False)
    shown = change or (one if alone else None)  # the baseline's own interval says nothing of the others' differences
    filled = bool(change and change.clear_of_zero) or getattr(row, "is_baseline", False)
    axis.errorbar(
        column.scale * one.value,
        place,
        xerr=None if shown is None else reach([shown], [column.scale]),
        fmt="D" if getattr(row, "is_baseline", False) else "o",
        color=colour,
        markerfacecolor=colour if filled else "white",
        markersize=5,
        capsize=2,
        linewidth=1.3,
    )


def _baseline(axis: Any, table: Table, row: ArmRow, n: int, places: dict[int, int], colour: str) -> None:
    """A line through the arms of the phase at the baseline's value."""
    one = row.cells[n].estimate
    own = [places[m] for m, other in enumerate(table.rows) if other.phase == row.phase]
    if one is not None:
        at = table.columns[n].scale * one.value
        axis.vlines(at, min(own) - 0.5, max(own) + 0.5, color=colour, linewidth=1, linestyle=":")


def _names(axis: Any, table: Table, places: dict[int, int], phases: Sequence[str]) -> None:
    """The names of arms and phases, each in its place."""
    marks, names, styles = [], [], []
    for n, phase in enumerate(phases):
        own = [places[m] for m, row in enumerate(table.rows) if row.phase == phase]
        marks.append(min(own) - 1)
        names.append(PHASE_NAMES.get(phase, phase))
        styles.append((COLOURS[n % len(COLOURS)], "bold"))
        for m, row in enumerate(table.rows):
            if row.phase == phase:
                marks.append(places[m])
                names.append(row.label)
                styles.append(("black", "bold" if getattr(row, "champion", False) else "normal"))
    axis.set_yticks(marks, names, fontsize=SIZE)
    axis.tick_params(axis="y", length=0)
    for label, (colour, weight) in zip(axis.get_yticklabels(), styles, strict=True):
        label.set_color(colour)
        label.set_fontweight(weight)


def _bands(axis: Any, table: Table, places: dict[int, int], phases: Sequence[str]) -> None:
    """A band behind every other phase."""
    for phase in phases[1::2]:
        own = [places[m] for m, row in enumerate(table.rows) if row.phase == phase]
        axis.axhspan(min(own) - 1.5, max(own) + 0.5, color="#f0f0f0", zorder=0)


def _title(column: Column) -> str:
    better = "less" if column.less_is_better else "more"
    *words, last = column.title.replace("/", "\n").split("\n")
    name = " ".join(words)
    return f"{name} [{last}]\n{better} is better" if last == "%" else f"{name} {last}".strip() + f"\n{better} is better"


def _note(table: Table) -> str:
    bars = "Bars: 95 % interval of the paired difference to the baseline (◆, dotted line); filled: clear of zero."
    paired = any(cell.difference for row in table.rows for cell in row.cells)
    champion = "  Bold: champion." if any(getattr(row, "champion", False) for row in table.rows) else ""
    return (bars if paired else "Bars: 95 % interval.") + champion
