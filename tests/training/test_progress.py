"""What a run prints: the values that matter, and the time left."""

from __future__ import annotations

import io
import time

import pytest
from transformers import TrainerControl, TrainerState

from refine.training.progress import ProgressBar


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def log_row(progress: ProgressBar, state: TrainerState, step: int, **logs: float) -> None:
    state.global_step = step
    progress.on_log(None, state, TrainerControl(), logs={name.replace("__", "/"): one for name, one in logs.items()})


def test_the_time_left_ignores_the_validation_before_the_first_step(clock, capsys):
    progress, state = ProgressBar("mid sft"), TrainerState(max_steps=4, is_world_process_zero=True)
    progress.on_train_begin(None, state, TrainerControl())
    clock[0] += 500
    log_row(progress, state, 0, val__loss=3.0)
    progress.on_step_begin(None, state, TrainerControl())
    clock[0] += 20
    log_row(progress, state, 1, train__loss=2.5, train__tokens_per_second=1234.5)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "mid sft  step 0/4  val loss 3.0000"
    assert second == "mid sft  step 1/4  loss 2.5000  1,234 tokens/s  0:01:00 left"


def test_post_training_shows_what_it_validates_on(clock, capsys):
    progress, state = ProgressBar("post sft"), TrainerState(max_steps=4, is_world_process_zero=True)
    progress.on_train_begin(None, state, TrainerControl())
    log_row(progress, state, 0, val__loss=3.0, val__answer_loss=2.0, val__answer_accuracy=0.5)
    shown = capsys.readouterr().out.split("  ")[2:]
    assert shown == ["val loss 3.0000", "val answer loss 2.0000", "val answer accuracy 0.5000\n"]


def test_a_terminal_has_a_bar_that_starts_at_the_resumed_step(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", screen)
    progress, state = ProgressBar("mid sft"), TrainerState(max_steps=8, global_step=4, is_world_process_zero=True)
    progress.on_train_begin(None, state, TrainerControl())
    progress.on_step_begin(None, state, TrainerControl())
    assert (progress.bar.n, progress.bar.initial) == (4, 4)
    log_row(progress, state, 5, train__loss=2.5, train__tokens_per_second=100.0)
    progress.on_train_end(None, state, TrainerControl())
    assert "5/8" in screen.getvalue() and "loss 2.5000" in screen.getvalue() and "100 tokens/s" in screen.getvalue()
