"""A table of arms as CSV in long form, for programs: a line for each metric and arm. `read` makes the table again."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from refine.errors import DataError
from refine.evaluation.intervals import Estimate
from refine.reports.arms import Line, metric_column
from refine.reports.cells import Cell
from refine.reports.paper_tables import Table, baseline_of
from refine.system.readers import in_form

OLDER = ("metric", "version", "arm", "value", "low", "high", "samples", "champion")  # what every file has
COLUMNS = (*OLDER, "phase", "difference", "difference_low", "difference_high", "pairs", "clear_of_zero")


def as_csv(table: Table) -> str:
    """Lines of `COLUMNS`. difference: to the baseline, over `pairs` samples. Empty where unknown."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for n, column in enumerate(table.columns):
        for row in table.rows:
            one, change = row.cells[n].estimate, row.cells[n].difference
            if one is None:
                continue
            champion = str(isinstance(row, Line) and row.champion).lower()
            version = row.version if isinstance(row, Line) else None
            clear = "" if change is None else str(change.clear_of_zero).lower()
            of_arm = [getattr(column, "name", column.title), "" if version is None else version, row.arm]
            writer.writerow([*of_arm, *_numbers(one), champion, row.phase, *_numbers(change), clear])
    return text.getvalue()


def read(path: Path) -> Table:
    """The table that `as_csv` wrote. Raises DataError: the file is missing, or is no such table."""
    if not path.is_file():
        raise DataError(f"{path}: no experiment has finished here yet; run `make run`, or `dvc repro`")
    with in_form(path, "a comparison of this version", advice="run the experiment again"):
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        if not lines:
            raise ValueError("it has no lines")
        if lacking := [name for name in COLUMNS if name not in lines[0]]:
            raise ValueError(f"it lacks the columns {', '.join(lacking)}")
        if short := [n for n, line in enumerate(lines, 2) if None in line.values()]:
            raise ValueError(f"line {short[0]} is cut off")
        cells = {(_arm(line), line["metric"]): _cell(line) for line in lines}
        columns = [metric_column([name]) for name in dict.fromkeys(line["metric"] for line in lines)]
        arms = {_arm(line): line for line in lines}
        rows = [
            _line(line, tuple(cells.get((key, column.name), Cell(None)) for column in columns))
            for key, line in arms.items()
        ]
    return Table("", tuple(columns), tuple(rows))


def _arm(line: Mapping[str, str]) -> tuple[str, str, str]:
    return line["phase"], line["arm"], line["version"]


def _line(line: Mapping[str, str], cells: tuple[Cell, ...]) -> Line:
    phase, arm = line["phase"], line["arm"]
    version = int(line["version"]) if line["version"] else None
    return Line(arm or phase, cells, phase, arm, (), version, line["champion"] == "true", arm == baseline_of(phase))


def _cell(line: Mapping[str, str]) -> Cell:
    value = Estimate(float(line["value"]), int(line["samples"] or 0), _number(line["low"]), _number(line["high"]))
    if not line["difference"]:
        return Cell(value)
    bounds = _number(line["difference_low"]), _number(line["difference_high"])
    return Cell(value, difference=Estimate(float(line["difference"]), int(line["pairs"] or 0), *bounds))


def _numbers(one: Estimate | None) -> list[str]:
    if one is None:
        return [""] * 4
    return [*map(_plain, (one.value, one.low, one.high)), str(one.samples or "")]


def _number(text: str) -> float | None:
    return float(text) if text else None


def _plain(value: float | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if float(value).is_integer() else repr(float(value))
