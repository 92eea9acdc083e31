"""What an experiment leaves: its comparison as text, table and picture, and a file of scores for each arm, which DVC
shows as rows under each other (`dvc metrics show`, `dvc metrics diff`, `dvc plots show`)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from refine.tracking.comparison import Comparison, compare
from refine.tracking.picture import draw
from refine.tracking.registry import HEADLINES, Version

METRICS, PICTURE = "metrics", "comparison.png"


def write(versions: Sequence[Version], folder: Path) -> tuple[Comparison, list[Path]]:
    """Write the results of these versions; returns their comparison and its files, the picture last."""
    comparison = compare(versions)
    for left in (folder / METRICS).glob("*.json"):  # of arms that the experiment no longer has
        left.unlink()
    for name, values in metrics(comparison).items():
        _write(folder / METRICS / f"{name}.json", json.dumps(values, indent=1) + "\n")
    texts = {"comparison.md": comparison.markdown() + "\n", "comparison.csv": comparison.csv()}
    files = [_write(folder / name, text) for name, text in texts.items()]
    return comparison, [*files, draw(comparison, folder / PICTURE)]


def metrics(comparison: Comparison) -> Mapping[str, Mapping[str, float]]:
    """`mid-refine` -> the headline metrics of that phase's arm."""
    rows = [row for row in comparison.rows if row.metric.endswith(HEADLINES)]
    return {
        "-".join(part for part in (version.phase, version.arm) if part): {
            row.metric: round(value, 6) for row in rows if (value := row.cells[n].value) is not None
        }
        for n, version in enumerate(comparison.versions)
    }


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
    return path
