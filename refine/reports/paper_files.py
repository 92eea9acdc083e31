"""A report's tables as Markdown, CSV and a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refine.evaluation.intervals import Estimate
from refine.reports.paper_columns import Column
from refine.reports.paper_tables import Cell, Table
from refine.system.files import write_picture, write_text

FILES = ("report.md", "report.csv", "report.png")


def write_report(tables: Sequence[Table], folder: str | Path, title: str) -> list[Path]:
    """`folder`/report.md, report.csv and report.png, each whole or not at all."""
    folder = Path(folder)
    markdown, values, figure = (folder / name for name in FILES)
    write_text(markdown, as_markdown(tables, title))
    write_text(values, as_csv(tables))
    draw(tables, figure)
    return [markdown, values, figure]


def as_markdown(tables: Sequence[Table], title: str) -> str:
    """Values with 95 % intervals, the best of each column in bold; below, differences to the SFT arm of each phase."""
    parts = [f"# {title}", "Values with 95 % intervals over samples (and seeds); the best of a column in bold."]
    for table in tables:
        parts += [f"## {table.title}", _values(table)]
        if any(cell.difference for row in table.rows for cell in row.cells):
            parts += [
                "Difference to the SFT arm of the same phase, sample by sample (* clear of zero):",
                _differences(table),
            ]
    return "\n\n".join(parts) + "\n"


def as_csv(tables: Sequence[Table]) -> str:
    """Long form, for programs: a line for each value, unscaled."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["table", "phase", "arm", "seeds", "column", "value", "low", "high", "samples", "best", "difference",
         "difference_low", "difference_high", "clear_of_zero"]
    )  # fmt: skip
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                if cell.estimate is not None:
                    seeds = " ".join(map(str, row.seeds))
                    writer.writerow([table.title, row.phase, row.arm, seeds, column.title, *_numbers(cell)])
    return text.getvalue()


def draw(tables: Sequence[Table], path: str | Path) -> Path:
    """A panel a table: columns along the axis, a point with its interval for each arm."""
    from matplotlib.figure import Figure

    path = Path(path)
    width = max(7.0, max(1.1 * len(table.columns) + 2 for table in tables))
    figure = Figure(figsize=(min(width, 24.0), 3.4 * len(tables)), layout="constrained")
    labels = list(dict.fromkeys(row.label for table in tables for row in table.rows))
    for axis, table in zip(figure.subplots(len(tables), 1, squeeze=False)[:, 0], tables, strict=True):
        _panel(axis, table, labels)
    return write_picture(path, figure, dpi=110)


def _panel(axis: Any, table: Table, labels: Sequence[str]) -> None:
    for n, row in enumerate(table.rows):
        shift = 0.7 * ((n + 0.5) / len(table.rows) - 0.5)
        found = [(place, cell.estimate) for place, cell in enumerate(row.cells) if cell.estimate is not None]
        scales = [table.columns[place].scale for place, _ in found]
        values = [scale * one.value for scale, (_, one) in zip(scales, found, strict=True)]
        below = [scale * (one.value - _low(one)) for scale, (_, one) in zip(scales, found, strict=True)]
        above = [scale * (_high(one) - one.value) for scale, (_, one) in zip(scales, found, strict=True)]
        at = [place + shift for place, _ in found]
        color = f"C{labels.index(row.label) % 10}"
        axis.errorbar(at, values, [below, above], fmt="o", ms=4, lw=1, color=color, label=row.label)
    axis.set_xticks(
        range(len(table.columns)), [column.title for column in table.columns], rotation=25, ha="right", fontsize=7
    )
    axis.set_title(table.title, fontsize=9)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _low(one: Estimate) -> float:
    return one.value if one.low is None else one.low


def _high(one: Estimate) -> float:
    return one.value if one.high is None else one.high


def _values(table: Table) -> str:
    lines = [["", *(column.title for column in table.columns)]]
    for row in table.rows:
        seeds = f" ({len(row.seeds)} seeds)" if len(row.seeds) > 1 else ""
        cells = (_value(cell, column) for column, cell in zip(table.columns, row.cells, strict=True))
        lines.append([f"{row.label}{seeds}", *cells])
    counts = [
        next((c.estimate.samples for c in cells if c.estimate), 0)
        for cells in zip(*(r.cells for r in table.rows), strict=True)
    ]
    return _markdown([*lines, ["samples", *map(str, counts)]])


def _differences(table: Table) -> str:
    lines = [["", *(column.title for column in table.columns)]]
    for row in table.rows:
        if any(cell.difference for cell in row.cells):
            lines.append(
                [row.label, *(_change(cell, column) for column, cell in zip(table.columns, row.cells, strict=True))]
            )
    return _markdown(lines)


def _value(cell: Cell, column: Column) -> str:
    if cell.estimate is None:
        return "–"
    value, _, interval = cell.estimate.text(column.scale, column.digits).partition(" ")
    return f"{f'**{value}**' if cell.best else value} {interval}".strip()


def _change(cell: Cell, column: Column) -> str:
    if cell.difference is None:
        return "–"
    text = cell.difference.text(column.scale, column.digits)
    return f"{'' if text.startswith('-') else '+'}{text}{' *' if cell.clear else ''}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *body])


def _numbers(cell: Cell) -> list[str]:
    one, change = cell.estimate, cell.difference
    assert one is not None
    changes = (change.value, change.low, change.high) if change else (None, None, None)
    numbers = [one.value, one.low, one.high]
    clear = "" if change is None else str(cell.clear).lower()
    return [*map(_plain, numbers), str(one.samples), str(cell.best).lower(), *map(_plain, changes), clear]


def _plain(value: float | None) -> str:
    return "" if value is None else repr(float(value))
