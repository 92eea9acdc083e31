"""Rows of metrics to an MLflow run: in batches, finite values only, each step of a metric once."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH = 1000  # metrics in a request: MLflow's own limit
NON_FINITE = "non_finite_values"  # counts the values that were left out


class Sender:
    """Sends rows of metrics to one run. It leaves out the steps that a metric has already, so rows may come again."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client, self.run_id = client, run_id
        self.last, self.non_finite = _known(client, run_id)  # metric -> its highest step
        self.in_doubt = False  # a request failed, but the server may have stored it

    def send(self, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> int:
        """Send (step, metrics) rows; returns how many values were sent.

        Values that are not numbers are left out. So are those that are not finite, which the metric
        `non_finite_values` counts. Raises what MLflow raises: the same rows can then be sent again, and no point is
        logged twice.
        """
        if self.in_doubt:
            self.last, self.non_finite = _known(self.client, self.run_id)
        points, highest, left_out = self._new_points(rows)
        self._log(points)
        self.last, self.non_finite = highest, left_out
        return len(points)

    def _new_points(
        self, rows: Iterable[tuple[int, Mapping[str, Any]]]
    ) -> tuple[list[tuple[str, float, int]], dict[str, int], int]:
        """((metric, value, step) of each new finite value, then the highest step of each metric and the count of
        non-finite values once they are sent)."""
        highest, found, bad = dict(self.last), [], dict[int, int]()
        for step, values in rows:
            for name, value in values.items():
                value = math.nan if value is None else value  # metrics.jsonl has null for a value that is not finite
                if not isinstance(value, int | float) or isinstance(value, bool) or step <= highest.get(name, -1):
                    continue
                highest[name] = step
                if math.isfinite(value):
                    found.append((name, float(value), step))
                elif step > self.last.get(NON_FINITE, -1):
                    bad[step] = bad.get(step, 0) + 1
        left_out = self.non_finite
        for step in sorted(bad):
            left_out, highest[NON_FINITE] = left_out + bad[step], step
            found.append((NON_FINITE, float(left_out), step))
        return found, highest, left_out

    def _log(self, points: Sequence[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.in_doubt = True
        for first in range(0, len(points), BATCH):
            batch = [Metric(name, value, now, step) for name, value, step in points[first : first + BATCH]]
            self.client.log_batch(self.run_id, metrics=batch)
        self.in_doubt = False


def _known(client: MlflowClient, run_id: str) -> tuple[dict[str, int], int]:
    """The highest step of each metric of the run, and how many values were left out so far."""
    names = client.get_run(run_id).data.metrics
    last = {name: max(point.step for point in client.get_metric_history(run_id, name)) for name in names}
    return last, int(names.get(NON_FINITE, 0))
