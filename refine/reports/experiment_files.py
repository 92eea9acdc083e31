"""The files of an experiment's results: the table of its arms as text, CSV and picture, for each arm a file of scores,
which DVC shows as a row (`dvc metrics show`, `dvc metrics diff`), and the files of `refine.reports.dvc_files`.

The same experiment writes the same files: none has a time in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from refine.errors import DataError
from refine.metric_names import HEADLINES, TIMES
from refine.reports import dvc_files
from refine.reports.arms import Arm, all_columns, metric_column, table
from refine.reports.arms_down import as_text, what_is_marked
from refine.reports.arms_picture import draw_arms
from refine.reports.comparison import Comparison
from refine.reports.headline import columns, headline
from refine.reports.long_csv import as_csv
from refine.reports.paper_tables import Table
from refine.system.files import write_text

METRICS, TEXT, VALUES, PICTURE = "metrics", "comparison.md", "comparison.csv", "comparison.png"
FENCE = "```"  # the text is made for letters of one width
REST = "More: refine summary --all, results/comparison.csv, results/comparison.png"


def write(
    comparison: Comparison,
    arms: Sequence[Arm],
    folder: Path,
    metric: str = "val/loss",
    trainings: dvc_files.Trainings | None = None,
) -> list[Path]:
    """Write the results of an experiment: `comparison` of its versions, and all its `arms`. metric: names its best arm.
    trainings: where their curves are. Returns the files of the table, the picture last."""
    for old in (folder / METRICS).glob("*.json"):  # the experiment may no longer have the arm
        old.unlink()
    for name, values in metrics(comparison).items():
        write_text(folder / METRICS / f"{name}.json", json.dumps(values, indent=1, allow_nan=False) + "\n")
    first = headline(arms)
    dvc_files.write_summary(arms, first, metric, folder)
    dvc_files.write_scores(first, folder)
    dvc_files.write_curves(trainings or {}, folder)
    text = f"{as_text(first, what_is_marked(first))}\n{REST}"
    return [
        write_text(folder / TEXT, f"{FENCE}text\n{text}\n{FENCE}\n"),
        write_text(folder / VALUES, as_csv(everything(arms))),
        draw_arms(first, folder / PICTURE),
    ]


def everything(arms: Sequence[Arm]) -> Table:
    """The table with every metric but times, and the means that the headline shows."""
    every = [one for one in all_columns(arms) if not one.name.endswith(TIMES)]
    means = [one for one in columns(column.name for column in every) if len(one.metrics) > 1]
    return table(arms, [*(metric_column(one.metrics, name=one.name) for one in means), *every])


def headline_text(folder: Path) -> str:
    """The text that `write` put into `folder`. Raises DataError if no experiment has finished there."""
    path = folder / TEXT
    if not path.is_file():
        raise DataError(f"{path}: no experiment has finished here yet; run `make run`, or `dvc repro`")
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith(FENCE)).strip("\n")


def metrics(comparison: Comparison) -> Mapping[str, Mapping[str, float]]:
    """Phase and arm (`mid-refine`) -> its headline metrics."""
    rows = [row for row in comparison.rows if row.label.endswith(HEADLINES)]
    return {
        "-".join(part for part in (version.phase, version.arm) if part): {
            row.label: round(one.value, 6) for row in rows if (one := row.cells[n].estimate) is not None
        }
        for n, version in enumerate(comparison.versions)
    }
