"""A table of arms for a terminal: arms down by phase, metrics across, as many side by side as its width has room for.

A value's interval stands beside it if everything then fits in one table, otherwise below it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from refine.reports.cells import NOTHING, Cell
from refine.reports.paper_columns import Column
from refine.reports.paper_tables import PHASE_NAMES, ArmRow, Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

WIDTH = 80  # columns of a text that goes to a file
LABEL = 20  # columns of a label; what is longer goes on below
STAR = "*"


def as_text(table: Table, note: str = "", width: int = WIDTH) -> str:
    """The table and below it the note, as text of at most `width` columns."""
    from rich.console import Console

    file = io.StringIO()
    show(Console(file=file, width=width, no_color=True, force_terminal=False), table, note)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def show(console: Console, table: Table, note: str = "") -> None:
    """Print the table in parts that fit the console, and below them the note."""
    for n, part in enumerate(_parts(table, console.width)):
        console.print(*([""] if n else []), part, sep="\n")
    if note:
        console.print(note, style="dim", markup=False, highlight=False)


def what_is_marked(table: Table) -> str:
    """What the star and the brackets of this table mean."""
    brackets = "[low,high]: 95 % interval over the samples."
    compared = [row for row in table.rows if any(cell.difference for cell in row.cells)]
    if not compared:
        return f"{brackets} No arm could be paired with a baseline."
    of = [f"{row.arm} of its phase" if row.phase != "test_time" else "the model as it is" for row in _baselines(table)]
    return f"{brackets} {STAR}: differs from {' or '.join(dict.fromkeys(of))}, in pairs of samples, clear of zero."


def _baselines(table: Table) -> list[ArmRow]:
    return [row for row in table.rows if getattr(row, "is_baseline", False)]


def _parts(table: Table, width: int) -> list[RichTable]:
    """The table whole with intervals beside the values, or in as few parts as fit with intervals below the values."""
    whole = _rich(table, stacked=False)
    if not table.columns or _width(whole) <= width:
        return [whole]
    parts, first = [], 0
    while first < len(table.columns):
        last = len(table.columns)
        while last > first + 1 and _width(_rich(_some(table, first, last), stacked=True)) > width:
            last -= 1
        parts.append(_rich(_some(table, first, last), stacked=True))
        first = last
    return parts


def _width(made: RichTable) -> int:
    """The width at which nothing is cut."""
    from rich.console import Console

    return Console(width=10_000).measure(made).maximum


def _some(table: Table, first: int, last: int) -> Table:
    """The columns `first` to `last`, and the arms that have any of them."""
    rows = [replace(row, cells=row.cells[first:last]) for row in table.rows]
    kept = tuple(row for row in rows if any(cell.estimate for cell in row.cells))
    return Table(table.title, table.columns[first:last], kept)


def _rich(table: Table, stacked: bool) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable

    made = RichTable(box=box.SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False, title_justify="left")
    made.add_column("", max_width=LABEL, overflow="fold")
    for heading in _headings(table.columns):
        made.add_column(heading, justify="right", no_wrap=True)
    phases = list(dict.fromkeys(row.phase for row in table.rows))
    for phase in phases:
        if phase:
            made.add_row(f"[bold]{PHASE_NAMES.get(phase, phase)}[/bold]")
        for row in (one for one in table.rows if one.phase == phase):
            cells = zip(table.columns, row.cells, strict=True)
            made.add_row(_label(row), *(_cell(column, cell, stacked) for column, cell in cells))
        if phase != phases[-1]:
            made.add_row("")
    return made


def _headings(columns: Sequence[Column]) -> list[str]:
    """A word a line, the last words in one line. Room is kept for the star."""
    found = [column.title.removeprefix("eval/").replace("/", "\n").split("\n") for column in columns]
    most = max(map(len, found), default=0)
    return ["\n" * (most - len(lines)) + "\n".join(f"{line} " for line in lines) for lines in found]


def _label(row: ArmRow) -> str:
    from rich.markup import escape

    champion = "\n  [green]champion[/green]" if getattr(row, "champion", False) else ""
    return f"  {escape(row.label)}{champion}"


def _cell(column: Column, cell: Cell, stacked: bool) -> str:
    one = cell.estimate
    if one is None:
        return f"{NOTHING} "
    star = STAR if cell.difference is not None and cell.difference.clear_of_zero else " "
    value, interval = one.value_text(column.scale, column.digits), _interval(column, cell)
    if star == STAR:
        value = f"[bold]{value}[/bold]"
    if not interval:
        return f"{value}{star}"
    return f"{value}{star}\n[dim]{interval}[/dim] " if stacked else f"{value}{star} [dim]{interval}[/dim] "


def _interval(column: Column, cell: Cell) -> str:
    """`[3.50,3.60]`, with a digit less than the value; empty without one. (`\\[`: rich would read it as a style.)"""
    if cell.estimate is None or cell.estimate.interval is None:
        return ""
    digits = max(column.digits - 1, 0)
    low, high = (f"{column.scale * bound:.{digits}f}" for bound in cell.estimate.interval)
    return f"\\[{low},{high}]"
