"""A thread that sends rows of metrics to an MLflow run while the work goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from refine.errors import reason
from refine.tracking.sender import Sender

if TYPE_CHECKING:
    from mlflow import MlflowClient

Rows = list[tuple[int, dict[str, Any]]]
"""(step, metrics) of each row."""
AFTER_FAILURE = 5.0  # longest time to wait for MLflow when the work has failed: its error should show soon [s]


class SendingThread:
    """Every `every` seconds, takes the new rows from `source` and sends them to the run.

    source: returns the rows since its last call. Rows that MLflow does not take go to `waiting`, and are sent again at
    the next turn: `drain` returns the reason. An error of `source` ends the thread, and `drain` raises it.
    """

    def __init__(self, client: MlflowClient, run_id: str, source: Callable[[], Rows], every: float) -> None:
        self.sender, self.source, self.every = Sender(client, run_id), source, every
        self.waiting: Rows = []
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def start(self) -> None:
        """Start the thread. After `drain` it can be started again."""
        self._stopped.clear()
        self._thread = threading.Thread(target=self._follow, name="metrics", daemon=True)
        self._thread.start()

    def drain(self, patience: float) -> str | None:
        """Stop the thread and send the rest, trying for up to `patience` seconds.

        Returns None if MLflow has every row; otherwise why it did not take those in `waiting`. Raises what `source`
        raised, here or in the thread.
        """
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        deadline = time.monotonic() + patience
        while (trouble := self._turn()) is not None and time.monotonic() < deadline:
            time.sleep(min(self.every, 1.0))
        return trouble

    def _follow(self) -> None:
        try:
            while not self._stopped.wait(self.every):
                self._turn()
        except Exception as error:  # nobody sees an exception of a thread
            self._error = error

    def _turn(self) -> str | None:
        """Take the new rows and send all that wait. Returns why MLflow did not take them, or None."""
        self.waiting += self.source()
        try:
            if self.waiting:
                self.sender.send(self.waiting)
                self.waiting = []
        except Exception as error:  # MLflow raises what its store, driver or HTTP client raise
            return reason(error)
        return None
