"""Differences between registered versions and the champion, sample by sample: is a difference clear of zero?

Each version's evaluation keeps the score of every sample and the loss of every sequence. Versions that were scored on
the same samples are compared in pairs, which takes out how hard each sample is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from refine.evaluation.intervals import Estimate, mean_difference
from refine.evaluation.record import Evaluation
from refine.reports.cells import Cell, Row
from refine.reports.evaluations import evaluation_of
from refine.tracking.registry import Version
from refine.tracking.tags import EVALUATION_RUN

if TYPE_CHECKING:
    from mlflow import MlflowClient

DIGITS = 4


def to_champion(client: MlflowClient, versions: Sequence[Version]) -> list[Row]:
    """A row for each metric: the mean difference of each version to the champion, with its 95 % interval.

    Empty if the champion is not among `versions`, or if no other version was scored on the same samples.
    """
    champion = next((one for one in versions if one.is_champion), None)
    if champion is None or len(versions) < 2:
        return []
    scored = {one.number: _values(client, one) for one in versions if one.evaluation == champion.evaluation}
    theirs = scored[champion.number]
    rows = []
    for metric in theirs:
        ours = [scored.get(one.number, {}).get(metric) if one is not champion else None for one in versions]
        rows.append(Row(metric, tuple(Cell(None, difference=_paired(each, theirs[metric])) for each in ours)))
    return [row for row in rows if any(cell.difference for cell in row.cells)]


def texts(row: Row) -> list[str]:
    """A row's differences as `refine compare` prints them: a star where they are clear of zero."""
    return [cell.difference_text(1.0, DIGITS, " *") for cell in row.cells]


def _paired(ours: tuple[float, ...] | None, theirs: tuple[float, ...]) -> Estimate | None:
    return None if ours is None or len(ours) != len(theirs) else mean_difference(ours, theirs)


def _values(client: MlflowClient, version: Version) -> dict[str, tuple[float, ...]]:
    """metric -> its value for each sample or sequence; empty if the version's evaluation is gone."""
    evaluation = evaluation_of(client, version.tags.get(EVALUATION_RUN, ""))
    return {} if evaluation is None else values(evaluation)


def values(evaluation: Evaluation) -> dict[str, tuple[float, ...]]:
    """metric -> its value for each sample or sequence."""
    found = {f"{name}/loss": tuple(score.sequence_losses) for name, score in evaluation.next_token.items()}
    found |= {
        f"{name}/marked_loss": score.sequence_marked_losses
        for name, score in evaluation.next_token.items()
        if score.sequence_marked_losses
    }
    for task in evaluation.tasks:
        found[f"eval/{task.task}/{task.length}/score"] = task.scores
        found[f"eval/{task.task}/{task.length}/log_prob"] = task.log_probs
    return found
