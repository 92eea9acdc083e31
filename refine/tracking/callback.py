"""Metrics of `transformers.Trainer` into an MLflow run, for training scripts of one's own (`import refine`).

`refine train` needs none of this: it writes metrics.jsonl, and the flow relays it (`refine.tracking.metrics`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from refine.tracking.metrics import Sender
from refine.tracking.run import Run

NAMES = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "eval_loss": "val/loss",
}  # what Trainer calls them, and what they are called here


class MlflowCallback(TrainerCallback):
    """Logs every row of a Trainer to `run`, in batches that a thread of its own sends every `every` seconds.

    No step waits for MLflow; what is not finite is left out; steps that are logged already (a resumed run) are not
    logged twice. Rows that could not be sent are kept and sent again; the end of training sends what is left, and
    raises what MLflow raises if it cannot.
    """

    def __init__(self, run: Run, every: float = 2.0) -> None:
        self.sender = Sender(run.client, run.run_id)
        self.every = every
        self.rows: list[tuple[int, Mapping[str, Any]]] = []
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Begin to send."""
        if state.is_world_process_zero:
            self.ended.clear()
            self.thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)
            self.thread.start()

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        """Keep the row that was just logged, for the next batch."""
        if state.is_world_process_zero and logs:
            row = {NAMES.get(name, name): value for name, value in logs.items() if name != "epoch"}
            with self.lock:
                self.rows.append((state.global_step, row))

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Send the rest."""
        if self.thread is not None:
            self.ended.set()
            self.thread.join()
            self.thread = None
            self._send()

    def _follow(self) -> None:
        while not self.ended.wait(self.every):
            try:
                self._send()
            except Exception:  # kept, and sent at the next turn
                continue

    def _send(self) -> None:
        with self.lock:
            rows = list(self.rows)
        if rows:
            self.sender.send(rows)
            with self.lock:
                del self.rows[: len(rows)]
