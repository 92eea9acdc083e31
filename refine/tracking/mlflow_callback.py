"""Metrics, reward histograms and checkpoints of `transformers.Trainer` in an MLflow run, for a training script of the
user's (`import refine`).

`refine train` does not need this: it writes metrics.jsonl, and the flow sends that file (`refine.tracking.relay`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from refine.errors import reason
from refine.system.leftovers import temporary_folder
from refine.tracking import outbox
from refine.tracking.logged_checkpoints import log_checkpoints
from refine.tracking.run import Run
from refine.tracking.sending_thread import AFTER_FAILURE, Rows, SendingThread
from refine.training import reward_histograms

log = logging.getLogger(__name__)
NAMES = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "eval_loss": "val/loss",
}  # Trainer's name of a metric -> ours


class MlflowCallback(TrainerCallback):
    """Logs every row of a Trainer to `run`. A thread sends the rows in batches, every `every` seconds.

    No step waits for MLflow, and no error of MLflow's ends a training. Values that are not finite are left out. A
    resumed training also sends the rows of its checkpoint; steps that the run has already are not logged twice. At the
    end the callback sends the rest, draws the reward histograms and, with `checkpoints`, logs each kept checkpoint as a
    model with its step (weights only). If MLflow does not answer for `patience` seconds, the callback warns in one
    line and keeps the rows on disk; the next `refine.tracking.connection.connect` delivers them.
    """

    def __init__(self, run: Run, every: float = 2.0, patience: float = 60.0, checkpoints: bool = True) -> None:
        self.run, self.patience, self.checkpoints = run, patience, checkpoints
        self.new: deque[tuple[int, dict[str, Any]]] = deque()
        self.thread = SendingThread(run.client, run.run_id, self._new_rows, every)
        run.closing.append(self._close)  # a training that fails does not call on_train_end

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start sending, first the rows of the checkpoint."""
        if state.is_world_process_zero:
            self._add((int(row["step"]), row) for row in state.log_history)
            self.thread.start()

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        """Add the row that was just logged to the next batch."""
        if state.is_world_process_zero and logs:
            self._add([(state.global_step, logs)])

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
        with temporary_folder("artifacts") as folder:
            for file in reward_histograms.write(state.log_history, folder):
                self.run.client.log_artifact(self.run.run_id, str(file))
        if self.checkpoints:
            log_checkpoints(self.run.client, self.run.run_id, output)

    def _add(self, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        self.new += (
            (step, {NAMES.get(name, name): value for name, value in row.items() if name not in ("epoch", "step")})
            for step, row in rows
        )

    def _new_rows(self) -> Rows:
        return [self.new.popleft() for _ in range(len(self.new))]  # the training may append meanwhile

    def _close(self) -> None:
        self._finish(min(self.patience, AFTER_FAILURE))

    def _finish(self, patience: float) -> bool:
        """Stop the thread and send the rest, or keep it on disk. Returns whether MLflow has every row."""
        trouble = self.thread.drain(patience)
        if trouble is None:
            return True
        rows, self.thread.waiting = self.thread.waiting, []
        file = outbox.keep(self.run.run_id, rows)
        log.warning(
            "MLflow does not answer (%s): %d rows of metrics of run %s are kept in %s until the next connection",
            trouble,
            len(rows),
            self.run.run_id,
            file,
        )
        return False
