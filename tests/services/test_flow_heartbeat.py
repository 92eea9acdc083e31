"""A flow labels its Prefect run with its process until the run ends. tests/flows/test_crashes.py kills real flows."""

from __future__ import annotations

import json
from types import SimpleNamespace
from uuid import uuid4

import prefect.client.orchestration
import pytest

from refine.services import flow_heartbeat
from refine.system.liveness import ALIVE, OWNER, alive


class Server:
    """A Prefect server that does not answer once, then shows the run as running once, and then as ended."""

    def __init__(self) -> None:
        self.answers = [ConnectionError("away"), False, True]
        self.labels: list[dict] = []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def read_flow_run(self, run_id):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(state=SimpleNamespace(is_final=lambda: answer))

    def update_flow_run_labels(self, run_id, labels):
        self.labels.append(labels)


@pytest.fixture
def server(monkeypatch) -> Server:
    server = Server()
    monkeypatch.setattr(prefect.client.orchestration, "get_client", lambda sync_client: server)
    monkeypatch.setattr(flow_heartbeat, "BEAT", 0.0)
    return server


def test_signs_of_life_outlast_a_server_that_does_not_answer_and_stop_with_the_run(server):
    flow_heartbeat._beat(uuid4())
    assert len(server.labels) == 1 and not server.answers


def test_the_labels_name_this_process(server):
    flow_heartbeat._label(uuid4())
    (labels,) = server.labels
    assert set(labels) == {OWNER, ALIVE} and json.loads(labels[OWNER])["pid"] and alive(labels)


def test_outside_of_a_flow_nothing_is_labelled(server):
    flow_heartbeat.start_heartbeat()
    assert not server.labels
