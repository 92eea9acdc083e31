"""metrics.jsonl holds every logged row once, across a resume. With kills: tests/training/test_kills.py."""

from __future__ import annotations

import json

from transformers import TrainerControl, TrainerState

from refine.metric_names import METRICS_FILE
from refine.training.metrics_file import MetricsFile


def test_every_row_is_there_once_also_after_a_resume(tmp_path):
    callback, state = MetricsFile(tmp_path), TrainerState(is_world_process_zero=True)
    callback.on_train_begin(None, state, TrainerControl())
    for step in (1, 2, 3):
        state.log_history.append({"step": step})
        callback.on_log(None, state, TrainerControl())
    rows = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert rows == [{"step": 1}, {"step": 2}, {"step": 3}]
    resumed = TrainerState(is_world_process_zero=True, log_history=[{"step": 1}, {"step": 2}])
    callback.on_train_begin(None, resumed, TrainerControl())
    assert (tmp_path / METRICS_FILE).read_text() == '{"step": 1}\n{"step": 2}\n'


def test_only_the_first_process_writes(tmp_path):
    callback, state = MetricsFile(tmp_path), TrainerState(is_world_process_zero=False, log_history=[{"step": 1}])
    callback.on_train_begin(None, state, TrainerControl())
    callback.on_log(None, state, TrainerControl())
    assert not list(tmp_path.iterdir())
