"""Registered versions against the champion, sample by sample: is a difference clear of zero?

Each version's evaluation keeps the score of every sample and the loss of every sequence. Two versions that were scored
on the same ones are compared pair by pair, which leaves out how hard the samples are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refine.evaluation.intervals import Estimate, mean_difference
from refine.evaluation.record import EVALUATION_FILE, Evaluation
from refine.system.quiet import no_download_bars
from refine.tracking.registry import Version
from refine.tracking.tags import EVALUATION_RUN

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Difference:
    """Of a metric: each version's mean difference to the champion with its 95 % interval; None where none is known."""

    metric: str
    estimates: tuple[Estimate | None, ...]

    def texts(self) -> list[str]:
        """As they are printed: sign, interval, and `clear` where the interval leaves out zero."""
        return [_text(one) for one in self.estimates]


def to_champion(client: MlflowClient, versions: Sequence[Version]) -> list[Difference]:
    """Differences of `versions` to the champion among them; empty where it is not among them, or nothing pairs."""
    champion = next((one for one in versions if one.is_champion), None)
    if champion is None or len(versions) < 2:
        return []
    values = {one.number: _values(client, one) for one in versions if one.evaluation == champion.evaluation}
    theirs = values[champion.number]
    found = []
    for metric in theirs:
        ours = [values.get(one.number, {}).get(metric) if one is not champion else None for one in versions]
        found.append(Difference(metric, tuple(_paired(each, theirs[metric]) for each in ours)))
    return [one for one in found if any(one.estimates)]


def _paired(ours: tuple[float, ...] | None, theirs: tuple[float, ...]) -> Estimate | None:
    return None if ours is None or len(ours) != len(theirs) else mean_difference(ours, theirs)


def _values(client: MlflowClient, version: Version) -> dict[str, tuple[float, ...]]:
    """metric -> its value for each sample or sequence; empty where the version's evaluation is gone."""
    from mlflow.exceptions import MlflowException

    run_id = version.tags.get(EVALUATION_RUN)
    if not run_id:
        return {}
    with tempfile.TemporaryDirectory() as folder, no_download_bars():
        try:
            evaluation = Evaluation.load(client.download_artifacts(run_id, EVALUATION_FILE, folder))
        except (MlflowException, OSError):
            return {}
    found = {f"{name}/loss": tuple(score.sequence_losses) for name, score in evaluation.next_token.items()}
    for task in evaluation.tasks:
        found[f"eval/{task.task}/{task.length}/score"] = task.scores
        found[f"eval/{task.task}/{task.length}/log_prob"] = task.log_probs
    return found


def _text(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:+.4f}"
    clear = " clear" if estimate.low > 0 or estimate.high < 0 else ""
    return f"{estimate.value:+.4f} [{estimate.low:+.4f}, {estimate.high:+.4f}]{clear}"
