"""Training curves of the arms of `benchmarks.studies.first_result`:
`python -m benchmarks.studies.first_result_training`.

Writes OUTPUT/training.md, an arm a row (means over seeds), and OUTPUT/training.png: next-token loss, gradient norm and
cosine reward along the steps, and the distribution of the rewards of held-out rollouts at the end.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.studies.first_result import MAIN
from refine import paths
from refine.training.reward_histograms import RANGES

Rows = list[dict[str, Any]]
LAST = 20  # the last steps of a training, over which its means are taken
# column -> its metric, and whether to take the last value (validation) or the mean of the last steps (training)
COLUMNS = {
    "held-out loss": ("val/loss", True),
    "held-out accuracy": ("val/accuracy", True),
    "held-out cosine reward": ("val/reward/cosine/mean", True),
    "its spread": ("val/reward/cosine/std", True),
    "held-out entropy": ("val/entropy", True),
    "gradient norm": ("train/grad_norm", False),
    "spread of advantages": ("train/advantage/std", False),
}


@click.command()
@click.option("--output", type=Path, default=paths.results() / "first", show_default=True)
def main(output: Path) -> None:
    """Make a table and a picture of the arms' series."""
    arms: dict[str, list[Rows]] = {}
    for path in sorted(output.glob("*/*/series.json")):
        arms.setdefault(path.parent.parent.name, []).append(json.loads(path.read_text(encoding="utf-8")))
    lines = [f"| arm | seeds | steps | {' | '.join(COLUMNS)} |", f"|{'---|' * (len(COLUMNS) + 3)}"]
    for arm in [*(arm for arm in MAIN if arm in arms), *sorted(set(arms) - set(MAIN))]:
        steps = max(row["step"] for row in arms[arm][0])
        cells = (_cell([_value(rows, *column) for rows in arms[arm]]) for column in COLUMNS.values())
        lines.append(f"| {arm} | {len(arms[arm])} | {steps} | {' | '.join(cells)} |")
    (output / "training.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _draw({arm: arms[arm] for arm in MAIN if arm in arms and arm != "none"}, output / "training.png")
    click.echo("\n".join(lines))


def _value(rows: Rows, metric: str, at_the_end: bool) -> float | None:
    found = [row[metric] for row in rows if metric in row]
    if not found:
        return None
    return found[-1] if at_the_end else float(np.mean(found[-LAST:]))


def _cell(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.4f}" if known else "–"


def _draw(arms: dict[str, list[Rows]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6), layout="constrained")
    *axes, last = figure.subplots(1, 4)
    shown = {
        "train/ntp_loss": "next-token loss [nats]",
        "train/grad_norm": "gradient norm",
        "train/reward/cosine/mean": "cosine reward",
    }
    for n, (arm, seeds) in enumerate(arms.items()):
        for axis, (metric, title) in zip(axes, shown.items(), strict=True):
            series = [[row[metric] for row in rows if metric in row] for rows in seeds]
            if series[0]:
                axis.plot(np.mean(series, axis=0), color=f"C{n}", linewidth=1, label=arm)
            axis.set(title=title, xlabel="step")
        counts = np.sum([_histogram(rows) for rows in seeds], axis=0)
        edges = np.linspace(*RANGES["cosine"], len(counts) + 1)
        last.stairs(counts / counts.sum(), edges, color=f"C{n}", label=arm)
    last.set(title="cosine reward of held-out rollouts", xlabel="reward", xlim=(-0.25, 1), yticks=[])
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def _histogram(rows: Rows) -> np.ndarray:
    return np.array([row["val/reward/cosine/histogram"] for row in rows if "val/reward/cosine/histogram" in row][-1])


if __name__ == "__main__":
    main()
