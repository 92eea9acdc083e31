"""The tables and the picture of docs/results.md, from what `benchmarks.studies.arms` wrote:
`python -m benchmarks.studies.arms_tables results/arms-delta_net --picture docs/results.png`.

A share is a mean over seeds and prompts. A difference is to SFT, prompt by prompt with the same seed; its interval is
the percentile bootstrap's over seeds and prompts (`refine.evaluation.intervals.mean_over_strata`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from refine.evaluation.intervals import Estimate, mean_over_strata
from refine.evaluation.record import EVALUATION_FILE, Evaluation

BASELINE = "sft"
Runs = dict[int, Evaluation]  # by seed
Values = Callable[[Evaluation], list[Sequence[float]]]  # the scores of each stratum


def _needles(task: str = "", length: int = 0, log_prob: bool = False) -> Values:
    def values(one: Evaluation) -> list[Sequence[float]]:
        found = [t for t in one.tasks if t.task.startswith(f"niah_{task}") and length in (0, t.length)]
        return [t.log_probs if log_prob else t.scores for t in found]

    return values


def _loss(name: str) -> Values:
    return lambda one: [one.next_token[name].sequence_losses]


# title, scale, digits, values
COLUMNS: tuple[tuple[str, float, int, Values], ...] = (
    ("needles, all [%]", 100, 1, _needles()),
    ("answers, log-prob.", 1, 2, _needles(log_prob=True)),
    ("single_1 4096 [%]", 100, 0, _needles("single_1", 4096)),
    ("single_2 4096 [%]", 100, 0, _needles("single_2", 4096)),
    ("plays, loss", 1, 3, _loss("val")),
    ("Bible, loss", 1, 3, _loss("second_domain")),
)


@click.command()
@click.argument("folder", type=Path)
@click.option("--picture", type=Path, help="Also draw the needles found and the loss by position.")
def main(folder: Path, picture: Path | None) -> None:
    """Print the tables of a study's folder."""
    arms = load(folder)
    click.echo(scores(arms))
    click.echo()
    click.echo(by_length(arms))
    click.echo()
    click.echo(by_position(arms))
    if (cost := folder / "cost.json").exists():
        click.echo(f"\ncost of a step in SFT steps: {json.loads(cost.read_text(encoding='utf-8'))}")
    if picture is not None:
        click.echo(f"drawn: {draw(arms, picture)}")


def load(folder: Path) -> dict[str, Runs]:
    """arm -> seed -> evaluation, in the order in which they were made."""
    files = sorted(folder.glob(f"*/*/{EVALUATION_FILE}"), key=lambda path: path.stat().st_mtime)
    found: dict[str, Runs] = {}
    for path in files:
        found.setdefault(path.parents[1].name, {})[int(path.parent.name)] = Evaluation.load(path)
    return dict(sorted(found.items(), key=lambda item: (item[0] not in ("none", "sft"), -len(item[1]))))


def estimate(runs: Runs, values: Values) -> Estimate:
    """The mean over seeds, strata and samples."""
    return mean_over_strata(_strata([values(runs[seed]) for seed in sorted(runs)]))


def difference(runs: Runs, baseline: Runs, values: Values) -> Estimate | None:
    """runs - baseline over the seeds that both have; None without one."""
    if not (seeds := sorted(runs.keys() & baseline.keys())):
        return None
    ours, theirs = (_strata([values(of[seed]) for seed in seeds]) for of in (runs, baseline))
    return mean_over_strata([a - b for a, b in zip(ours, theirs, strict=True)], differences=True)


def _strata(by_seed: Sequence[Sequence[Sequence[float]]]) -> list[np.ndarray]:
    return [np.array(rows, dtype=float) for rows in zip(*by_seed, strict=True)]


def scores(arms: dict[str, Runs]) -> str:
    """A line for each arm: its scores, with the differences to SFT."""
    lines = [["arm", "seeds", *(title for title, *_ in COLUMNS)]]
    for arm, runs in arms.items():
        cells = [_cell(arm, runs, arms, *column) for column in COLUMNS]
        lines.append([arm, ", ".join(map(str, sorted(runs))), *cells])
    return _markdown(lines)


def _cell(arm: str, runs: Runs, arms: dict[str, Runs], title: str, scale: float, digits: int, values: Values) -> str:
    text = estimate(runs, values).value_text(scale, digits)
    if arm == BASELINE or (found := difference(runs, arms[BASELINE], values)) is None:
        return text
    return f"{text} ({found.text(scale, digits, '+')}{' *' * found.clear_of_zero})"


def by_length(arms: dict[str, Runs]) -> str:
    """The share of needles that each arm finds, by task and length [%]."""
    pairs = [(task.task, task.length) for task in next(iter(next(iter(arms.values())).values())).tasks]
    lines = [["arm", *(f"{task.removeprefix('niah_')} {length}" for task, length in pairs)]]
    for arm, runs in arms.items():
        found = [estimate(runs, _needles(task.removeprefix("niah_"), length)) for task, length in pairs]
        lines.append([arm, *(one.value_text(100, 0) for one in found)])
    return _markdown(lines)


def by_position(arms: dict[str, Runs]) -> str:
    """The loss on held-out plays by position in the context [nats per token]."""
    bins = next(iter(arms[BASELINE].values())).next_token["val"].by_position
    lines = [["arm", *(f"{one.first}–{one.last}" for one in bins)]]
    for arm, runs in arms.items():
        losses = [[one.loss for one in run.next_token["val"].by_position] for run in runs.values()]
        lines.append([arm, *(f"{loss:.3f}" for loss in np.mean(losses, 0))])
    return _markdown(lines)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, f"|{'---|' * len(lines[0])}", *body])


def draw(arms: dict[str, Runs], path: Path) -> Path:
    """For each score a panel: a point and its interval for each arm. Returns `path`."""
    from matplotlib.figure import Figure

    from refine.system.files import write_picture

    names = list(arms)
    figure = Figure(figsize=(9, 1.2 + 0.27 * len(names)), layout="constrained")
    panels: Any = figure.subplots(1, 4, sharey=True)
    for axis, (title, scale, _, values) in zip(panels, (COLUMNS[0], *COLUMNS[2:5]), strict=True):
        for place, arm in enumerate(names):
            one = estimate(arms[arm], values)
            low, high = (one.value, one.value) if one.interval is None else one.interval
            reach = [[scale * (one.value - low)], [scale * (high - one.value)]]
            axis.errorbar(
                scale * one.value, place, xerr=reach, fmt="o", markersize=4, capsize=2,
                color="C3" if arm in ("none", BASELINE) else "C0",
            )  # fmt: skip
        axis.axvline(scale * estimate(arms[BASELINE], values).value, color="C3", linewidth=0.8, alpha=0.6)
        axis.set_title(title, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(axis="x", linewidth=0.4, alpha=0.5)
    panels[0].set_yticks(range(len(names)), names, fontsize=7)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    return write_picture(path, figure, dpi=100)


if __name__ == "__main__":
    main()
