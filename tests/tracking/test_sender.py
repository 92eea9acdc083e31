"""Metrics reach MLflow whole: no step twice, none lost to a death, a resume, a NaN or a server that was away."""

from __future__ import annotations

import json
import math
import os
import time

import pytest

from refine.errors import ServiceError
from refine.tracking.run import open_run
from refine.tracking.sender import NON_FINITE, Relay, Sender, Series


def history(client, run_id: str, name: str = "train/loss") -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def loss(step: int) -> dict:
    return {"train/loss": 10.0 - step, "epoch": 0.1, "step": step}


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


def test_what_is_not_finite_is_left_out_and_counted(client, run):
    rows = [
        (1, {"train/loss": math.nan, "train/entropy": 2.0}),
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


def test_a_file_that_grows_is_followed_and_a_torn_line_waits(tmp_path):
    path = tmp_path / "metrics.jsonl"
    series = Series(path)
    assert series.new_rows() == []
    path.write_text(lines(loss(1)) + '{"train/loss": 8.0, "st')
    assert series.new_rows() == [(1, {"train/loss": 9.0})]
    with path.open("a") as file:
        file.write('ep": 2}\nnot json\n')
    assert series.new_rows() == [(2, {"train/loss": 8.0})]
    assert series.new_rows() == []


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(loss(1), loss(2), loss(3)))
    series = Series(path)
    assert len(series.new_rows()) == 3
    (tmp_path / "beside").write_text(lines(loss(1), loss(2), loss(3), loss(4)))
    os.replace(tmp_path / "beside", path)
    assert [step for step, _ in series.new_rows()] == [1, 2, 3, 4]


def test_a_resumed_training_leaves_one_whole_series(client, run, tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(RuntimeError), Relay(path, client, run.run_id, every=0.05):
        path.write_text(lines(*map(loss, range(1, 8))) + '{"train/loss": 2.0,')
        raise RuntimeError("the training was killed")
    assert len(history(client, run.run_id)) == 7
    with Relay(path, client, run.run_id, every=0.05):  # goes on from the checkpoint of step 5
        path.with_name("beside").write_text(lines(*map(loss, range(1, 6))))
        os.replace(path.with_name("beside"), path)
        with path.open("a") as file:
            for step in range(6, 11):
                file.write(lines(loss(step)))
    assert history(client, run.run_id) == [(step, 10.0 - step) for step in range(1, 11)]


def test_rows_are_shown_while_training_goes_on(client, run, tmp_path):
    path, seen = tmp_path / "metrics.jsonl", []
    with Relay(path, client, run.run_id, every=0.05, seen=seen.extend):
        path.write_text(lines(loss(1)))
        deadline = time.monotonic() + 10
        while not seen and time.monotonic() < deadline:
            time.sleep(0.02)
        assert seen == [(1, {"train/loss": 9.0})]


def test_a_server_that_was_away_gets_everything_when_it_is_back(client, run, tmp_path, monkeypatch):
    path, calls, real = tmp_path / "metrics.jsonl", [], client.log_batch

    def away_at_first(*arguments, **keywords):
        calls.append(1)
        if len(calls) < 4:
            raise ConnectionError("connection refused")
        return real(*arguments, **keywords)

    monkeypatch.setattr(client, "log_batch", away_at_first)
    with Relay(path, client, run.run_id, every=0.05):
        path.write_text(lines(loss(1), loss(2)))
    assert len(calls) >= 4 and history(client, run.run_id) == [(1, 9.0), (2, 8.0)]


def test_a_server_that_stays_away_is_an_error_that_says_where_the_metrics_are(client, run, tmp_path, monkeypatch):
    def away(*arguments, **keywords):
        raise ConnectionError("connection refused")

    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(loss(1)))
    monkeypatch.setattr(client, "log_batch", away)
    with (
        pytest.raises(ServiceError, match=r"metrics\.jsonl.*connection refused"),
        Relay(path, client, run.run_id, every=0.05, patience=0.3),
    ):
        pass


def test_what_arrived_of_a_request_that_failed_is_not_logged_twice(client, run, monkeypatch):
    """The server took the batch, and went away before it could say so."""
    real = client.log_batch

    def taken_but_not_told(*arguments, **keywords):
        real(*arguments, **keywords)
        raise ConnectionError("connection reset by peer")

    sender = Sender(client, run.run_id)
    rows = [(1, {"train/loss": 9.0, "train/odd": math.nan}), (2, {"train/loss": 8.0})]
    monkeypatch.setattr(client, "log_batch", taken_but_not_told)
    with pytest.raises(ConnectionError):
        sender.send(rows)
    monkeypatch.setattr(client, "log_batch", real)
    time.sleep(0.01)  # at another time it would be another point to MLflow
    assert sender.send([*rows, (3, {"train/loss": 7.0})]) == 1
    assert history(client, run.run_id) == [(1, 9.0), (2, 8.0), (3, 7.0)]
    assert history(client, run.run_id, NON_FINITE) == [(1, 1.0)]


def test_what_was_left_out_is_counted_on_by_a_resumed_training(client, run):
    Sender(client, run.run_id).send([(1, {"a": math.nan, "b": math.inf}), (2, {"a": 1.0})])
    Sender(client, run.run_id).send([(1, {"a": math.nan, "b": math.inf}), (2, {"a": 1.0}), (3, {"a": math.nan})])
    assert history(client, run.run_id, NON_FINITE) == [(1, 2.0), (3, 3.0)]
