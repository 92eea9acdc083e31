"""A comparison as a picture: a small panel for each metric, a point with its 95 % interval for each version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refine.metric_names import smaller_is_better
from refine.reports.comparison import Comparison, Row
from refine.system.files import write_picture

COLUMNS = 4  # panels beside each other
OTHERS, CHAMPION = "#3b6ea5", "#2a8c4a"


def draw(comparison: Comparison, path: str | Path) -> Path:
    """Write the picture to `path`, whole or not at all; its ending says its form (.png, .svg, .pdf)."""
    from matplotlib.figure import Figure

    path = Path(path)
    columns = max(1, min(COLUMNS, len(comparison.rows)))
    lines = max(1, -(-len(comparison.rows) // columns))
    height = 0.9 + 0.22 * len(comparison.versions)
    figure = Figure(figsize=(1.6 + 2.6 * columns, height * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis, row in zip(axes.flat, comparison.rows, strict=False):
        _panel(axis, row, comparison)
    for axis in axes.flat[len(comparison.rows) :]:
        axis.set_axis_off()
    return write_picture(path, figure, dpi=90)


def _panel(axis: Any, row: Row, comparison: Comparison) -> None:
    for place, (cell, version) in enumerate(zip(row.cells, comparison.versions, strict=True)):
        if cell.value is None:
            continue
        low, high = (cell.value if bound is None else bound for bound in (cell.low, cell.high))
        colour = CHAMPION if version.is_champion else OTHERS
        # A bound that is not on its side of the value (rounding) is drawn as the value.
        reach = [[max(cell.value - low, 0.0)], [max(high - cell.value, 0.0)]]
        axis.errorbar(cell.value, place, xerr=reach, fmt="o", color=colour, markersize=4, capsize=2, linewidth=1.2)
    axis.set_yticks(range(len(comparison.versions)), comparison.headers(), fontsize=7)
    axis.set_ylim(len(comparison.versions) - 0.5, -0.5)
    axis.set_title(f"{row.metric} ({'less' if smaller_is_better(row.metric) else 'more'} is better)", fontsize=7)
    axis.tick_params(axis="x", labelsize=6)
    axis.grid(axis="x", linewidth=0.4, alpha=0.5)
