"""What DVC shows of an experiment: one row of `dvc exp show`, and the data of `dvc plots show`.

summary.json holds the scores of the experiment's best arm. curves/ has a file for each phase and metric, with every arm
over the steps; scores/ a file for each headline score, with its arms and intervals. DVC draws each file as a panel, by
the templates in .dvc/plots. No file has times in it: the same experiment writes the same files.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from refine.metric_names import smaller_is_better
from refine.reports.arms import Arm, Line
from refine.reports.evaluations import TEST_TIME
from refine.reports.paper_tables import Table
from refine.system.files import write_text
from refine.tracking.relay import MetricsReader

SUMMARY, CURVES, SCORES = "summary.json", "curves", "scores"
OVER_STEPS = ("train/ntp_loss", "val/loss", "recall/marked_loss", "val/answer_loss")  # where a training has them
DIGITS = 6

Trainings = Mapping[str, Mapping[str, Path]]  # phase -> arm -> its metrics.jsonl


def write_summary(arms: Sequence[Arm], made: Table, metric: str, folder: Path) -> Path:
    """The headline scores `made` of the arm that is best by `metric`, under short names. Test time is left out: its
    arms are no models."""
    known = [one for one in arms if metric in one.estimates and one.phase != TEST_TIME]
    values: dict[str, Any] = {}
    if known:
        best = (min if smaller_is_better(metric) else max)(known, key=lambda one: one.estimates[metric].value)
        values["best"] = f"{best.phase} {best.arm}".strip()
        row = next(row for row in made.rows if (row.phase, row.arm) == (best.phase, best.arm))
        for column, cell in zip(made.columns, row.cells, strict=True):
            if cell.estimate is not None:
                values[short(getattr(column, "name", column.title))] = round(cell.estimate.value, DIGITS)
    return write_text(folder / SUMMARY, json.dumps(values, indent=1, allow_nan=False) + "\n")


def short(metric: str) -> str:
    """`val`, `recall.marked`, `needles.mean`: narrow columns, and no name of the arms' own files."""
    parts = [part for part in metric.split("/") if part not in ("eval", "score", "loss")]
    if parts[0] == "mean":
        parts = [*parts[1:], *(["mean"] if len(parts) == 2 else [])]
    return ".".join(parts).replace("marked_loss", "marked").replace("niah_", "")


def write_curves(trainings: Trainings, folder: Path) -> list[Path]:
    """A file for each phase and metric of OVER_STEPS that a training measured."""
    _empty(folder / CURVES)
    found: dict[str, list[tuple[str, int, float]]] = {}
    for phase, arms in trainings.items():
        for arm, file in arms.items():
            for step, metric, value in _measured(file):
                found.setdefault(f"{phase}-{metric.replace('/', '-')}", []).append((arm or phase, step, value))
    return [_write(folder / CURVES / f"{name}.csv", ("arm", "step", "value"), rows) for name, rows in found.items()]


def _measured(file: Path) -> Iterable[tuple[int, str, float]]:
    reader = MetricsReader(file)
    rows = reader.new_rows()
    reader.close()
    for step, values in rows:
        for metric in OVER_STEPS:
            if isinstance(value := values.get(metric), int | float):
                yield step, metric, value


def write_scores(made: Table, folder: Path) -> list[Path]:
    """A file for each headline score: phase and arm, value, and the interval (the value itself where it has none)."""
    _empty(folder / SCORES)
    files = []
    for n, column in enumerate(made.columns):
        rows = []
        for row in made.rows:
            if (one := row.cells[n].estimate) is not None:
                low, high = one.interval or (one.value, one.value)
                rows.append((_name(row), *(column.scale * value for value in (one.value, low, high))))
        name = f"{getattr(column, 'name', column.title).replace('/', '-')}.csv"
        files.append(_write(folder / SCORES / name, ("arm", "value", "low", "high"), rows))
    return files


def _name(row: Any) -> str:
    assert isinstance(row, Line)
    return f"{row.phase} {row.arm}".strip()


def _empty(folder: Path) -> None:
    """Make the folder without files. DVC wants the folders of its outputs, also empty ones."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write(file: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([[round(one, DIGITS) if isinstance(one, float) else one for one in row] for row in rows])
    return write_text(file, text.getvalue())
