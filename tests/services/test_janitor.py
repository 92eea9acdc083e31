"""Which Prefect runs the janitor counts as dead. tests/flows/test_crashes.py tests it with real processes."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from prefect.states import Cancelling, Completed, Pending, Running, Scheduled

from refine.services.janitor import RUNNING, _has_process, _is_in, is_dead
from refine.system.liveness import ALIVE, OWNER, owner

NOW = time.time()
DEAD = {OWNER: json.dumps({**owner(), "started": 1.0}), ALIVE: int(NOW)}
LIVING = {OWNER: json.dumps(owner()), ALIVE: int(NOW)}
SILENT = {OWNER: json.dumps({**owner(), "host": "another"}), ALIVE: int(NOW) - 100}
HEARD = {OWNER: json.dumps({**owner(), "host": "another"}), ALIVE: int(NOW) - 30}


def a_run(state, seconds: float, labels: dict | None = None, tags: tuple[str, ...] = ("refine",)) -> SimpleNamespace:
    state.timestamp = datetime.fromtimestamp(NOW - seconds, UTC)
    return SimpleNamespace(state=state, labels=labels or {}, tags=list(tags))


@pytest.mark.parametrize(
    ("state", "expected"),
    [(Running(), True), (Cancelling(), True), (Pending(), False), (Scheduled(), False), (Completed(), False)],
)
def test_only_a_running_prefect_run_can_have_died_with_its_mlflow_run(state, expected):
    assert _is_in(RUNNING, SimpleNamespace(state=state)) is expected
    assert not _is_in(RUNNING, SimpleNamespace(state=None))


@pytest.mark.parametrize(
    ("flow_run", "pool", "expected"),
    [
        (a_run(Running(), 100, DEAD), "process", True),
        (a_run(Running(), 100, SILENT), "kubernetes", True),
        (a_run(Running(), 100, LIVING), "process", False),
        (a_run(Running(), 100, HEARD), "process", False),
        (a_run(Running(), 5, DEAD), "process", False),  # a retry that has not labelled its run yet
        (a_run(Running(), 100), "process", True),  # died before it labelled its run
        (a_run(Running(), 100, tags=()), "process", False),  # somebody else's
        (a_run(Pending(), 200), "process", True),  # its worker died with it
        (a_run(Pending(), 200, DEAD), "process", True),
        (a_run(Pending(), 100), "process", False),
        (a_run(Pending(), 9000), "kubernetes", False),  # an image may take its time
        (a_run(Scheduled(), 9000), "process", False),
        (a_run(Completed(), 9000, DEAD), "process", False),
    ],
)
def test_a_run_without_a_living_process_is_dead_after_a_grace_period(flow_run, pool, expected):
    assert is_dead(flow_run, pool, NOW) is expected


def test_a_run_that_was_retried_in_the_meantime_is_left_alone():
    assert _has_process(a_run(Running(), 100, LIVING), NOW) and _has_process(a_run(Running(), 0, DEAD), NOW)
    assert not _has_process(a_run(Running(), 100, DEAD), NOW)
    assert not _has_process(a_run(Completed(), 0, DEAD), NOW)
