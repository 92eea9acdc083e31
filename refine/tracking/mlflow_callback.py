"""Metrics, reward histograms and checkpoints of `transformers.Trainer` into an MLflow run, for training scripts of
one's own (`import refine`).

`refine train` needs none of this: it writes metrics.jsonl, and the flow relays it (`refine.tracking.sender`).
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from refine.errors import reason
from refine.tracking import outbox
from refine.tracking.logged_checkpoints import log_checkpoints
from refine.tracking.run import Run
from refine.tracking.sender import Sender
from refine.training import reward_histograms

log = logging.getLogger(__name__)
NAMES = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "eval_loss": "val/loss",
}  # what Trainer calls them, and what they are called here


class MlflowCallback(TrainerCallback):
    """Logs every row of a Trainer to `run`, in batches that a thread of its own sends every `every` seconds.

    No step waits for MLflow, and no training ends for it. What is not finite is left out. A training that is resumed
    sends what its checkpoint knew as well; steps that the run has already are not logged twice. At the end the rest is
    sent, the reward histograms are drawn and, with `checkpoints`, each kept one becomes a logged model with its step
    (weights only). An MLflow that stays away for `patience` seconds then costs a line: the points are kept on disk, and
    delivered when `refine.tracking.connection.connect` next finds it.
    """

    def __init__(self, run: Run, every: float = 2.0, patience: float = 60.0, checkpoints: bool = True) -> None:
        self.run, self.sender = run, Sender(run.client, run.run_id)
        self.every, self.patience, self.checkpoints = every, patience, checkpoints
        self.rows: list[tuple[int, Mapping[str, Any]]] = []
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None
        run.closing.append(self._close)  # a training that fails does not come to on_train_end

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Begin to send, with what the checkpoint knew."""
        if state.is_world_process_zero:
            self._take((int(row["step"]), row) for row in state.log_history)
            self.ended.clear()
            self.thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)
            self.thread.start()

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        """Keep the row that was just logged, for the next batch."""
        if state.is_world_process_zero and logs:
            self._take([(state.global_step, logs)])

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Send the rest."""
        if state.is_world_process_zero and self._finish(self.patience):
            try:
                self._log_files(state, Path(args.output_dir))
            except Exception as error:  # the training is done: its result is worth more than its record
                log.warning(
                    "MLflow did not take histograms and checkpoints of run %s: %s", self.run.run_id, reason(error)
                )

    def _log_files(self, state: TrainerState, output: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for file in reward_histograms.write(state.log_history, Path(folder)):
                self.run.client.log_artifact(self.run.run_id, str(file))
        if self.checkpoints:
            log_checkpoints(self.run.client, self.run.run_id, output)

    def _take(self, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        named = [
            (step, {NAMES.get(name, name): value for name, value in row.items() if name not in ("epoch", "step")})
            for step, row in rows
        ]
        with self.lock:
            self.rows += named

    def _follow(self) -> None:
        while not self.ended.wait(self.every):
            self._send()

    def _send(self) -> str | None:
        """Returns why MLflow did not take what waits (it is kept, and sent at the next turn), or None."""
        with self.lock:
            rows = list(self.rows)
        try:
            if rows:
                self.sender.send(rows)
        except Exception as error:  # MLflow raises what its store, driver or HTTP client raise
            return reason(error)
        with self.lock:
            del self.rows[: len(rows)]
        return None

    def _close(self) -> None:
        self._finish(min(self.patience, 5.0))

    def _finish(self, patience: float) -> bool:
        """Stop the thread and send the rest, or keep it on disk; returns whether MLflow has everything."""
        if self.thread is None:
            return not self.rows
        self.ended.set()
        self.thread.join()
        self.thread = None
        deadline = time.monotonic() + patience
        while (trouble := self._send()) is not None:
            if time.monotonic() >= deadline:
                self._keep(trouble)
                return False
            time.sleep(min(self.every, 1.0))
        return True

    def _keep(self, trouble: str) -> None:
        file = outbox.keep(self.run.run_id, self.rows)
        log.warning(
            "MLflow does not answer (%s): %d rows of metrics of run %s are kept in %s, and delivered when it is next "
            "used", trouble, len(self.rows), self.run.run_id, file,
        )  # fmt: skip
        self.rows = []
