"""The metrics.jsonl of a training process, sent to an MLflow run while the file grows.

A training process writes its rows to metrics.jsonl and never waits for MLflow. The process that started it relays the
file: a killed training loses no row, and a server that does not answer delays no step.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from refine.errors import ServiceError, reason
from refine.system.readers import in_form, parsed_json
from refine.tracking.sending_thread import AFTER_FAILURE, Rows, SendingThread

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)


class MetricsReader:
    """Reads the rows of a metrics.jsonl that grows. A resumed training replaces the file.

    The start of a line waits for its end: a killed training leaves such a last line, which nobody reads. A complete
    line that is no row is left out, with a warning.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: IO[bytes] | None = None  # stays open, so that no other file gets its inode
        self.unfinished = b""  # the start of a line whose end is not written yet
        self.lines = 0  # complete lines read

    def new_rows(self) -> Rows:
        """(step, metrics) of the complete lines since the last call; of all lines after the file was replaced."""
        try:
            if self.file is None or not os.path.samestat(os.fstat(self.file.fileno()), self.path.stat()):
                self.close()
                self.file = self.path.open("rb")
            content = self.file.read()
        except OSError:  # not there yet, or no file
            return []
        *complete, self.unfinished = (self.unfinished + content).split(b"\n")
        rows = []
        for line in complete:
            self.lines += 1
            try:
                rows.append(_row(line, f"{self.path}: line {self.lines}"))
            except ServiceError as error:
                log.warning("%s: it is left out", error)
        return rows

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()
        self.file, self.unfinished, self.lines = None, b"", 0


def _row(line: bytes, where: str) -> tuple[int, dict[str, Any]]:
    values = parsed_json(line, where, ServiceError)
    with in_form(where, "a row of metrics", ServiceError):
        step = values["step"]
        if type(step) is not int or not 0 <= step < 2**63:
            raise ValueError(f"step is {reason(repr(step), 40)}: expected a count")
        return step, {name: value for name, value in values.items() if name not in ("step", "epoch")}


class Relay:
    """Sends a metrics.jsonl to an MLflow run while the file grows (use as a context manager).

    seen: called with the new rows as soon as they are read. At the end of the block the rest is sent, for up to
    `patience` seconds. Raises ServiceError there if MLflow does not take it, unless the block fails with its own error.
    """

    def __init__(
        self,
        path: Path,
        client: MlflowClient,
        run_id: str,
        *,
        every: float = 2.0,
        patience: float = 60.0,
        seen: Callable[[Rows], None] | None = None,
    ) -> None:
        self.reader, self.patience, self.seen = MetricsReader(path), patience, seen
        self.thread = SendingThread(client, run_id, self._new_rows, every)

    def __enter__(self) -> Relay:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        patience = self.patience if kind is None else min(self.patience, AFTER_FAILURE)
        try:
            trouble = self.thread.drain(patience)
        except Exception:  # of `seen`; it would hide the error of the block
            if kind is None:
                raise
            return
        finally:
            self.reader.close()
        if trouble is not None and kind is None:
            raise ServiceError(
                f"MLflow did not take the metrics of {self.reader.path} in {patience:.0f} s ({trouble}); they are in "
                "that file: run again once it answers"
            )

    def _new_rows(self) -> Rows:
        new = self.reader.new_rows()
        if new and self.seen is not None:
            self.seen(new)
        return new
