"""Metrics on their way to MLflow: in batches, finite values only, each step of a series once.

A training process writes its rows to metrics.jsonl and never waits for MLflow. `Relay` follows that file from the
process that started it, so a killed training loses no row, and a server that is away for a while delays no step.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from refine.errors import ServiceError, reason

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH = 1000  # metrics in a request: MLflow's own limit
NON_FINITE = "non_finite_values"  # counts the values that were left out


class Sender:
    """Sends rows of metrics to one run. Steps that a series has already are left out, so rows may come again."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client, self.run_id = client, run_id
        self.last, self.non_finite = _known(client, run_id)  # metric -> its highest step
        self.in_doubt = False  # a request failed: the server may have taken it all the same

    def send(self, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> int:
        """Send (step, metrics) rows; returns how many values went. What is no number or not finite is left out, and
        the latter counted in the metric `non_finite_values`. What MLflow raises passes on: the rows can be sent
        again, and what had arrived of them is not logged twice."""
        from mlflow.entities import Metric

        if self.in_doubt:
            self.last, self.non_finite = _known(self.client, self.run_id)
        now = int(time.time() * 1000)
        highest, found, bad = dict(self.last), [], dict[int, int]()
        for step, values in rows:
            for name, value in values.items():
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
        self.in_doubt = True
        for first in range(0, len(found), BATCH):
            batch = [Metric(name, value, now, step) for name, value, step in found[first : first + BATCH]]
            self.client.log_batch(self.run_id, metrics=batch)
        self.last, self.non_finite, self.in_doubt = highest, left_out, False
        return len(found)


def _known(client: MlflowClient, run_id: str) -> tuple[dict[str, int], int]:
    """The highest step of each series that the run has, and how many values were left out so far."""
    names = client.get_run(run_id).data.metrics
    last = {name: max(point.step for point in client.get_metric_history(run_id, name)) for name in names}
    return last, int(names.get(NON_FINITE, 0))


class Series:
    """The rows of a metrics.jsonl that grows, and that a resumed training writes anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: IO[bytes] | None = None  # held open, so that its inode stays its own
        self.torn = b""

    def new_rows(self) -> list[tuple[int, dict[str, Any]]]:
        """(step, metrics) of the whole lines since the last call; all of them again after the file was replaced."""
        try:
            if self.file is None or not os.path.samestat(os.fstat(self.file.fileno()), self.path.stat()):
                self.close()
                self.file = self.path.open("rb")
        except FileNotFoundError:
            return []
        *whole, self.torn = (self.torn + self.file.read()).split(b"\n")
        return [row for line in whole if (row := _row(line)) is not None]

    def close(self) -> None:
        """Let go of the file."""
        if self.file is not None:
            self.file.close()
        self.file, self.torn = None, b""


def _row(line: bytes) -> tuple[int, dict[str, Any]] | None:
    try:
        values = json.loads(line)
        return int(values["step"]), {name: value for name, value in values.items() if name not in ("step", "epoch")}
    except (ValueError, KeyError, TypeError):  # torn by a death in mid-write
        return None


class Relay:
    """A thread that brings a metrics.jsonl into an MLflow run while the file grows (use as a context manager).

    `seen` is called with each list of new rows, as soon as they are read. A server that fails is asked again at the
    next turn; leaving the context waits up to `patience` seconds for it. Raises ServiceError there if it stays away.
    """

    def __init__(
        self,
        path: Path,
        client: MlflowClient,
        run_id: str,
        *,
        every: float = 2.0,
        patience: float = 60.0,
        seen: Callable[[list[tuple[int, dict[str, Any]]]], None] | None = None,
    ) -> None:
        self.series, self.sender = Series(path), Sender(client, run_id)
        self.every, self.patience, self.seen = every, patience, seen
        self.waiting: list[tuple[int, dict[str, Any]]] = []
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._follow, name="metrics", daemon=True)

    def __enter__(self) -> Relay:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.stopped.set()
        self.thread.join()
        try:
            self._drain(kind)
        finally:
            self.series.close()

    def _drain(self, kind: type[BaseException] | None) -> None:
        deadline = time.monotonic() + (self.patience if kind is None else min(self.patience, 5.0))
        while (trouble := self._turn()) is not None:
            if time.monotonic() >= deadline:
                if kind is None:
                    raise ServiceError(
                        f"MLflow did not take the metrics of {self.series.path} in {self.patience:.0f} s "
                        f"({trouble}); they are in that file: run again once it answers"
                    )
                return
            time.sleep(min(self.every, 1.0))

    def _follow(self) -> None:
        while not self.stopped.wait(self.every):
            self._turn()

    def _turn(self) -> str | None:
        """Read what is new, send what waits. Returns why it could not be sent, or None."""
        new = self.series.new_rows()
        self.waiting += new
        if new and self.seen is not None:
            self.seen(new)
        try:
            if self.waiting:
                self.sender.send(self.waiting)
                self.waiting = []
        except Exception as error:  # MLflow raises what its store, driver or HTTP client raise
            return reason(error)
        return None
