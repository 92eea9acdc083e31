"""What a run prints while it trains: steps, losses, tokens per second and time left."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState


class ProgressBar(TrainerCallback):
    """A bar on a terminal; elsewhere a line every `interval` seconds and after every validation."""

    def __init__(self, title: str, interval: float = 10.0) -> None:
        self.title, self.interval = title, interval
        self.bar: Any = None
        self.printed = time.monotonic()
        self.started: float | None = None
        self.first = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Begin at the step that training starts from."""
        self.printed, self.started = time.monotonic(), None
        self.first = state.global_step
        if state.is_world_process_zero and sys.stderr.isatty():
            self.bar = tqdm(desc=self.title, total=state.max_steps, initial=self.first, unit="step", dynamic_ncols=True)

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock at the first step, so that the validation before it does not spoil the time left."""
        if self.started is None:
            self.started = time.monotonic()
            if self.bar is not None:
                self.bar.reset(total=state.max_steps)
                self.bar.initial = self.bar.n = self.first

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        """Show the row that was just logged."""
        if not state.is_world_process_zero or not logs:
            return
        if self.bar is not None:
            self.bar.n = state.global_step
            self.bar.set_postfix_str(_summary(logs))
        elif self._is_due(state, logs):
            self.printed = time.monotonic()
            steps = f"step {state.global_step}/{state.max_steps}"
            print(f"{self.title}  {steps}  {_summary(logs)}{self._time_left(state)}", flush=True)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()

    def _is_due(self, state: TrainerState, logs: dict[str, float]) -> bool:
        waited = time.monotonic() - self.printed >= self.interval
        return waited or state.global_step >= state.max_steps or _is_validation(logs)

    def _time_left(self, state: TrainerState) -> str:
        done, left = state.global_step - self.first, state.max_steps - state.global_step
        if done == 0 or left <= 0 or self.started is None:
            return ""
        return f"  {timedelta(seconds=round((time.monotonic() - self.started) / done * left))} left"


def _is_validation(logs: dict[str, float]) -> bool:
    return any(not name.startswith("train/") and name.endswith("/loss") for name in logs)


def _summary(logs: dict[str, float]) -> str:
    shown = []
    for name, value in logs.items():
        if value is None:  # it was not finite
            continue
        part, _, key = name.partition("/")
        answers = part != "train" and key in ("answer_loss", "answer_accuracy")  # in training they are the loss
        if key in ("loss", "accuracy") or answers or (key.startswith("reward/") and key.endswith("/mean")):
            label = key.removeprefix("reward/").removesuffix("/mean").replace("_", " ")
            shown.append(f"{'' if part == 'train' else part + ' '}{label} {value:.4f}")
    if "train/tokens_per_second" in logs:
        shown.append(f"{logs['train/tokens_per_second']:,.0f} tokens/s")
    return "  ".join(shown)
