"""The files of an experiment's results: its comparison as Markdown, CSV and picture, and for each arm a file of scores,
which DVC shows as a row (`dvc metrics show`, `dvc metrics diff`, `dvc plots show`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from refine.metric_names import HEADLINES
from refine.phases.stages import Scored
from refine.reports.comparison import Comparison, compare, side_by_side
from refine.reports.pictures import draw_comparison
from refine.system.files import write_text
from refine.tracking.registry import Version

METRICS, PICTURE = "metrics", "comparison.png"


def write(versions: Sequence[Version], folder: Path, adapted: str = "") -> tuple[Comparison, list[Path]]:
    """Write the results of these versions. Returns their comparison and its files, the picture last.

    adapted: the table of `test_time`, which goes below the comparison.
    """
    comparison = compare(versions)
    for old in (folder / METRICS).glob("*.json"):  # the experiment may no longer have the arm
        old.unlink()
    for name, values in metrics(comparison).items():
        write_text(folder / METRICS / f"{name}.json", json.dumps(values, indent=1, allow_nan=False) + "\n")
    texts = {
        "comparison.md": "\n\n".join(filter(None, (comparison.markdown(), adapted))) + "\n",
        "comparison.csv": comparison.csv(),
    }
    files = [write_text(folder / name, text) for name, text in texts.items()]
    return comparison, [*files, draw_comparison(comparison, folder / PICTURE)]


def test_time(scores: Sequence[Scored]) -> str:
    """A table of a model as it is beside the same model adapted to each prompt, by every arm of test-time training.
    Empty if there is no such arm."""
    adapted = [one for one in scores if one.target.adapted_by]
    if not adapted:
        return ""
    model = adapted[0].target.model
    base = next(one for one in scores if one.target.model == model and not one.target.adapted_by)
    known = adapted[0].metrics
    columns = {f"{model.stage.title}, as it is": {name: base.metrics[name] for name in known if name in base.metrics}}
    columns |= {f"adapted by {one.target.arm}": dict(one.metrics) for one in adapted}
    return side_by_side(columns)


def metrics(comparison: Comparison) -> Mapping[str, Mapping[str, float]]:
    """Phase and arm (`mid-refine`) -> its headline metrics."""
    rows = [row for row in comparison.rows if row.label.endswith(HEADLINES)]
    return {
        "-".join(part for part in (version.phase, version.arm) if part): {
            row.label: round(one.value, 6) for row in rows if (one := row.cells[n].estimate) is not None
        }
        for n, version in enumerate(comparison.versions)
    }
