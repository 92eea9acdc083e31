"""What an experiment leaves: results/metrics.json (for `dvc metrics show`); its comparison as Markdown, CSV, picture."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refine import paths
from refine.tracking.comparison import Comparison, compare
from refine.tracking.picture import draw
from refine.tracking.registry import Version

FILES = ("metrics.json", "comparison.md", "comparison.csv")
PICTURE = "comparison.png"


def write(versions: Sequence[Version], folder: Path | None = None) -> tuple[Comparison, list[Path]]:
    """Write the results of these versions; returns their comparison and the files."""
    folder = folder or paths.results()
    comparison = compare(versions)
    texts = {
        "metrics.json": json.dumps(metrics(comparison), indent=1) + "\n",
        "comparison.md": comparison.markdown() + "\n",
        "comparison.csv": comparison.csv(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = [_write(folder / name, text) for name, text in texts.items()]
    return comparison, [*files, draw(comparison, folder / PICTURE)]


def metrics(comparison: Comparison) -> Mapping[str, Any]:
    """By phase, arm and metric, the values that the table shows, for `dvc metrics show` and `dvc metrics diff`."""
    found: dict[str, dict[str, Any]] = {}
    for n, version in enumerate(comparison.versions):
        found.setdefault(version.phase, {})[version.arm] = {
            row.metric: round(value, 6) for row in comparison.rows if (value := row.cells[n].value) is not None
        }
    return found


def _write(path: Path, text: str) -> Path:
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
    return path
