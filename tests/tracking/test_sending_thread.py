"""The thread sends what its source gives, keeps what MLflow does not take, and can be started again."""

from __future__ import annotations

import pytest

from refine.tracking.run import open_run
from refine.tracking.sending_thread import SendingThread
from tests.conftest import wait_for


@pytest.fixture
def run(client, experiment):
    with open_run(client, experiment, "mid refine") as run:
        yield run


@pytest.fixture
def rows() -> list:
    """The rows that the thread has not taken yet."""
    return []


@pytest.fixture
def thread(client, run, rows) -> SendingThread:
    def take():
        taken, rows[:] = list(rows), []
        return taken

    return SendingThread(client, run.run_id, take, every=0.05)


def steps(client, run) -> list[int]:
    return sorted(point.step for point in client.get_metric_history(run.run_id, "train/loss"))


def test_a_thread_can_be_drained_and_started_again(client, run, rows, thread):
    for step in (1, 2):
        thread.start()
        rows.append((step, {"train/loss": 3.0}))
        assert thread.drain(patience=10.0) is None
    assert steps(client, run) == [1, 2]


def test_rows_that_come_after_the_thread_ended_are_sent_by_the_next_drain(client, run, rows, thread):
    thread.start()
    assert thread.drain(patience=10.0) is None
    rows.append((1, {"train/loss": 3.0}))
    assert thread.drain(patience=10.0) is None and steps(client, run) == [1]


def test_what_mlflow_does_not_take_waits_and_drain_says_why(client, run, rows, thread, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("connection refused")

    rows.append((1, {"train/loss": 3.0}))
    with monkeypatch.context() as patched:
        patched.setattr(client, "log_batch", fail)
        assert thread.drain(patience=0.1) == "connection refused"
    assert thread.waiting == [(1, {"train/loss": 3.0})]
    assert thread.drain(patience=10.0) is None and steps(client, run) == [1]


def test_an_error_of_the_source_is_raised_by_drain_once(client, run):
    called: list[int] = []

    def source() -> list:
        called.append(1)
        if len(called) == 1:
            raise KeyError("a fault of the source")
        return []

    thread = SendingThread(client, run.run_id, source, every=0.05)
    thread.start()
    assert wait_for(lambda: called and not thread._thread.is_alive())
    with pytest.raises(KeyError, match="a fault of the source"):
        thread.drain(patience=1.0)
    assert thread.drain(patience=1.0) is None
