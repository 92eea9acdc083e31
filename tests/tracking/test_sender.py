"""A run gets every finite value once, also when rows come again or a request fails."""

from __future__ import annotations

import math
import time

import pytest

from refine.tracking.run import open_run
from refine.tracking.sender import NON_FINITE, Sender


def history(client, run_id: str, name: str = "train/loss") -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))


@pytest.fixture
def run(client, experiment):
    with open_run(client, experiment, "mid refine") as run:
        yield run


def test_rows_that_come_again_are_logged_once(client, run):
    Sender(client, run.run_id).send([(step, {"train/loss": 10.0 - step}) for step in range(1, 6)])
    resumed = Sender(client, run.run_id)
    resumed.send([(step, {"train/loss": 10.0 - step, "val/loss": 4.0}) for step in range(4, 8)])
    assert history(client, run.run_id) == [(step, 10.0 - step) for step in range(1, 8)]
    assert [step for step, _ in history(client, run.run_id, "val/loss")] == [4, 5, 6, 7]


def test_values_that_are_not_finite_are_left_out_and_counted(client, run):
    rows = [
        (1, {"train/loss": None, "train/entropy": 2.0}),  # as in metrics.jsonl
        (2, {"train/loss": math.inf}),
        (3, {"train/loss": 1.0}),
    ]
    Sender(client, run.run_id).send(rows)
    assert history(client, run.run_id) == [(3, 1.0)]
    assert history(client, run.run_id, NON_FINITE) == [(1, 1.0), (2, 2.0)]
    assert history(client, run.run_id, "train/entropy") == [(1, 2.0)]


def test_thousands_of_values_go_in_few_requests(client, run, monkeypatch):
    sizes, real = [], client.log_batch
    monkeypatch.setattr(
        client,
        "log_batch",
        lambda run_id, metrics=(), **kw: (sizes.append(len(metrics)), real(run_id, metrics=metrics)),
    )
    Sender(client, run.run_id).send([(step, {f"m{n}": 1.0 for n in range(25)}) for step in range(1, 101)])
    assert sizes == [1000, 1000, 500]


def test_points_that_a_failed_request_delivered_are_not_logged_twice(client, run, monkeypatch):
    """The server stored the batch, but its answer did not arrive."""
    real = client.log_batch

    def store_then_fail(*arguments, **keywords):
        real(*arguments, **keywords)
        raise ConnectionError("connection reset by peer")

    sender = Sender(client, run.run_id)
    rows = [(1, {"train/loss": 9.0, "train/odd": math.nan}), (2, {"train/loss": 8.0})]
    monkeypatch.setattr(client, "log_batch", store_then_fail)
    with pytest.raises(ConnectionError):
        sender.send(rows)
    monkeypatch.setattr(client, "log_batch", real)
    time.sleep(0.01)  # a point with another time is another point to MLflow
    assert sender.send([*rows, (3, {"train/loss": 7.0})]) == 1
    assert history(client, run.run_id) == [(1, 9.0), (2, 8.0), (3, 7.0)]
    assert history(client, run.run_id, NON_FINITE) == [(1, 1.0)]


def test_a_resumed_training_counts_non_finite_values_from_where_it_stopped(client, run):
    Sender(client, run.run_id).send([(1, {"a": math.nan, "b": math.inf}), (2, {"a": 1.0})])
    Sender(client, run.run_id).send([(1, {"a": math.nan, "b": math.inf}), (2, {"a": 1.0}), (3, {"a": math.nan})])
    assert history(client, run.run_id, NON_FINITE) == [(1, 2.0), (3, 3.0)]
