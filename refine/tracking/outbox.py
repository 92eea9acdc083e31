"""What MLflow did not take before the process that had it ended: kept in $REFINE_HOME/unsent, a file a run, and
delivered by the next `connect` to an MLflow that knows the run."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from refine import paths

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)


def folder() -> Path:
    """Where it is kept."""
    return paths.home() / "unsent"


def keep(run_id: str, rows: Iterable[tuple[int, Mapping[str, Any]]] = (), status: str | None = None) -> Path:
    """Write down (step, metrics) rows of a run, or how and when it ended; returns the file."""
    lines: list[dict[str, Any]] = [{"step": step, "metrics": dict(values)} for step, values in rows]
    if status is not None:
        lines.append({"status": status, "ended": int(time.time() * 1000)})
    file = folder() / f"{run_id}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(file, "a") as opened:
        assert opened is not None
        opened.write("".join(json.dumps(line, default=str) + "\n" for line in lines))
        opened.flush()
        os.fsync(opened.fileno())
    return file


def deliver(client: MlflowClient) -> list[str]:
    """Bring what is kept to the MLflow of `client`; returns the ids of the runs that have all of it now. A run that
    this MLflow does not know stays kept: it is another one's."""
    return [file.stem for file in sorted(folder().glob("*.jsonl")) if _delivered(client, file)]


def _delivered(client: MlflowClient, file: Path) -> bool:
    from refine.tracking.sender import reason

    with _locked(file, "r", wait=False) as opened:
        if opened is None:  # another process is at it
            return False
        lines = [json.loads(line) for line in opened if line.endswith("\n")]
        try:
            _send(client, file.stem, lines)
        except Exception as error:  # whatever the store, the driver or the server makes of it
            if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                log.warning("what is kept in %s was not delivered: %s", file, reason(error))
            return False
        file.unlink()
    log.warning("delivered to MLflow what it had not taken of run %s", file.stem)
    return True


def _send(client: MlflowClient, run_id: str, lines: list[dict[str, Any]]) -> None:
    from refine.tracking.run import ALIVE
    from refine.tracking.sender import Sender

    Sender(client, run_id).send([(line["step"], line["metrics"]) for line in lines if "step" in line])
    for line in lines:
        # A sign of life after that end is of a process that goes on with the run, and will end it.
        if "status" in line and 1000 * float(client.get_run(run_id).data.tags.get(ALIVE, 0)) <= line["ended"]:
            client.set_terminated(run_id, line["status"], line["ended"])


@contextlib.contextmanager
def _locked(file: Path, mode: str, wait: bool = True) -> Iterator[IO[str] | None]:
    """The file, opened and held for this process; None where it is gone, or another one has it (`wait` false)."""
    while True:
        try:
            opened = file.open(mode, encoding="utf-8")
        except FileNotFoundError:
            yield None
            return
        with opened:
            held = _lock(opened, wait)
            if not held or _is_at(opened, file):
                yield opened if held else None
                return
        # It was delivered and removed between opening and locking: begin anew.


def _is_at(opened: IO[str], file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(opened.fileno()), file.stat())
    except FileNotFoundError:
        return False


def _lock(opened: IO[str], wait: bool) -> bool:
    try:
        import fcntl
    except ImportError:  # not Unix: one process at a time is then the caller's care
        return True
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
