"""A metrics.jsonl reaches MLflow complete: no step twice, none lost by a death, a resume or a server that fails."""

from __future__ import annotations

import json
import os
import time

import pytest

from refine.errors import ServiceError
from refine.tracking.relay import MetricsReader, Relay
from refine.tracking.run import open_run


def history(client, run_id: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, "train/loss"))


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def loss(step: int) -> dict:
    return {"train/loss": 10.0 - step, "epoch": 0.1, "step": step}


@pytest.fixture
def run(client, experiment):
    with open_run(client, experiment, "mid refine") as run:
        yield run


def test_new_lines_are_read_once_they_are_complete(tmp_path):
    path = tmp_path / "metrics.jsonl"
    reader = MetricsReader(path)
    assert reader.new_rows() == []
    path.write_text(lines(loss(1)) + '{"train/loss": 8.0, "st')
    assert reader.new_rows() == [(1, {"train/loss": 9.0})]
    with path.open("a") as file:
        file.write('ep": 2}\nnot json\n')
    assert reader.new_rows() == [(2, {"train/loss": 8.0})]
    assert reader.new_rows() == []


@pytest.mark.parametrize(
    "line", ["not json", "[]", "{}", '{"step": "2"}', '{"step": -1}', '{"step": true}', "[" * 9000]
)
def test_a_complete_line_that_is_no_row_is_left_out_and_named(tmp_path, line, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(loss(1)) + line + "\n" + lines(loss(3)) + '{"st')
    reader = MetricsReader(path)
    assert [step for step, _ in reader.new_rows()] == [1, 3]
    reader.close()
    assert [record.getMessage()[: len(f"{path}: line 2: ")] for record in caplog.records] == [f"{path}: line 2: "]


def test_a_file_that_was_replaced_is_read_from_its_start(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(loss(1), loss(2), loss(3)))
    reader = MetricsReader(path)
    assert len(reader.new_rows()) == 3
    (tmp_path / "beside").write_text(lines(loss(1), loss(2), loss(3), loss(4)))
    os.replace(tmp_path / "beside", path)
    assert [step for step, _ in reader.new_rows()] == [1, 2, 3, 4]


def test_a_resumed_training_leaves_each_step_once(client, run, tmp_path):
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


def test_a_server_that_answers_again_gets_every_row(client, run, tmp_path, monkeypatch):
    path, calls, real = tmp_path / "metrics.jsonl", [], client.log_batch

    def fail_three_times(*arguments, **keywords):
        calls.append(1)
        if len(calls) < 4:
            raise ConnectionError("connection refused")
        return real(*arguments, **keywords)

    monkeypatch.setattr(client, "log_batch", fail_three_times)
    with Relay(path, client, run.run_id, every=0.05):
        path.write_text(lines(loss(1), loss(2)))
    assert len(calls) >= 4 and history(client, run.run_id) == [(1, 9.0), (2, 8.0)]


def test_a_server_that_never_answers_is_an_error_that_names_the_file_of_metrics(client, run, tmp_path, monkeypatch):
    def fail(*arguments, **keywords):
        raise ConnectionError("connection refused")

    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(loss(1)))
    monkeypatch.setattr(client, "log_batch", fail)
    with (
        pytest.raises(ServiceError, match=r"metrics\.jsonl.*connection refused"),
        Relay(path, client, run.run_id, every=0.05, patience=0.3),
    ):
        pass
