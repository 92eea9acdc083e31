"""The paper's tables as Markdown, CSV and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from refine.reports.cells import NOTHING, Cell, markdown_table
from refine.reports.paper_columns import Column
from refine.reports.paper_tables import Table
from refine.reports.pictures import draw_tables
from refine.system.files import write_text

FILES = ("report.md", "report.csv", "report.png")
COLUMNS = (
    *("table", "phase", "arm", "seeds", "column"),
    *("value", "low", "high", "samples", "best"),
    *("difference", "difference_low", "difference_high", "clear_of_zero"),
)  # of the CSV
DIFFERENCE = "Difference to the SFT arm of the phase (test time: to the model as it is), in pairs (* clear of zero):"


def write_report(tables: Sequence[Table], folder: str | Path, title: str) -> list[Path]:
    """Write `folder`/report.md, report.csv and report.png. Returns them in this order."""
    folder = Path(folder)
    markdown, values, picture = (folder / name for name in FILES)
    write_text(markdown, as_markdown(tables, title))
    write_text(values, as_csv(tables))
    draw_tables(tables, picture)
    return [markdown, values, picture]


def as_markdown(tables: Sequence[Table], title: str) -> str:
    """Values with 95 % intervals, the best of each column in bold; below, the differences to each phase's baseline."""
    parts = [f"# {title}", "Values with 95 % intervals over samples (and seeds); the best of a column in bold."]
    for table in tables:
        parts += [f"## {table.title}", _values(table)]
        if any(cell.difference for row in table.rows for cell in row.cells):
            parts += [DIFFERENCE, _differences(table)]
    return "\n\n".join(parts) + "\n"


def as_csv(tables: Sequence[Table]) -> str:
    """Long form, for programs: a line for each value, without the column's scale."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                if cell.estimate is not None:
                    seeds = " ".join(map(str, row.seeds))
                    writer.writerow([table.title, row.phase, row.arm, seeds, column.title, *_numbers(cell)])
    return text.getvalue()


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
    return markdown_table([*lines, ["samples", *map(str, counts)]])


def _differences(table: Table) -> str:
    lines = [["", *(column.title for column in table.columns)]]
    for row in table.rows:
        if any(cell.difference for cell in row.cells):
            cells = zip(table.columns, row.cells, strict=True)
            lines.append([row.label, *(cell.difference_text(one.scale, one.digits, " *") for one, cell in cells)])
    return markdown_table(lines)


def _value(cell: Cell, column: Column) -> str:
    if (one := cell.estimate) is None:
        return NOTHING
    value = one.value_text(column.scale, column.digits)
    return f"{f'**{value}**' if cell.best else value} {one.interval_text(column.scale, column.digits)}".rstrip()


def _numbers(cell: Cell) -> list[str]:
    one, change = cell.estimate, cell.difference
    assert one is not None
    changes = (change.value, change.low, change.high) if change else (None, None, None)
    numbers = [one.value, one.low, one.high]
    clear = "" if change is None else str(change.clear_of_zero).lower()
    return [*map(_plain, numbers), str(one.samples), str(cell.best).lower(), *map(_plain, changes), clear]


def _plain(value: float | None) -> str:
    return "" if value is None else repr(float(value))
