"""Records that MLflow did not take before their process ended. They wait in $REFINE_HOME/unsent, a file for each run;
the next `connect` to an MLflow that has the run delivers them."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from refine import paths
from refine.errors import ServiceError, reason
from refine.system.files import json_values
from refine.system.liveness import last_sign
from refine.system.locks import hold, try_hold
from refine.system.readers import in_form, parsed_json, read_text
from refine.tracking.sender import Sender

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATUSES = ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")  # MLflow's
log = logging.getLogger(__name__)


def folder() -> Path:
    """The folder of the files."""
    return paths.home() / "unsent"


def keep(run_id: str, rows: Iterable[tuple[int, Mapping[str, Any]]] = (), status: str | None = None) -> Path:
    """Keep (step, metrics) rows of a run, or its final status and the time. Returns the file."""
    lines: list[dict[str, Any]] = [{"step": step, "metrics": json_values(values)} for step, values in rows]
    if status is not None:
        lines.append({"status": status, "ended": int(time.time() * 1000)})
    file = folder() / f"{run_id}.jsonl"
    with hold(lock_of(file), f"process {os.getpid()}"), file.open("a+b") as opened:
        _remove_half_line(opened, file)
        opened.write("".join(json.dumps(line, default=str, allow_nan=False) + "\n" for line in lines).encode())
        opened.flush()
        os.fsync(opened.fileno())
    return file


def _remove_half_line(opened: IO[bytes], file: Path) -> None:
    """Remove the last line of `file` if it has no end: the process that wrote it was killed. A line that is written
    after it would be lost with it."""
    opened.seek(0)
    complete, end, half = opened.read().rpartition(b"\n")
    if half:
        log.warning("%s: removed the half-written last line, which a killed process left", file)
        opened.truncate(len(complete + end))


def deliver(client: MlflowClient) -> list[str]:
    """Deliver the kept records to the MLflow of `client`. Returns the ids of the runs that now have theirs.

    Records of a run that this MLflow does not have stay: they belong to another MLflow.
    """
    return [file.stem for file in sorted(folder().glob("*.jsonl")) if _delivered(client, file)]


def _delivered(client: MlflowClient, file: Path) -> bool:
    lock = try_hold(lock_of(file), f"process {os.getpid()}")
    if lock is None:  # another process is delivering it
        return False
    try:
        if not file.exists():  # another process has delivered it
            return False
        _send(client, file.stem, _lines(file))
    except Exception as error:  # MLflow raises what its store, driver or server raise
        if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
            log.warning("the records in %s were not delivered: %s", file, reason(error))
        return False
    else:
        file.unlink()
    finally:
        lock.release()
    log.warning("delivered to MLflow the kept records of run %s", file.stem)
    return True


def _lines(file: Path) -> list[dict[str, Any]]:
    """The complete lines of `file`. A half-written last line, which a killed process leaves, is left out."""
    *complete, _ = read_text(file, "kept records", ServiceError).split("\n")
    found = []
    for number, text in enumerate(complete, 1):
        where = f"line {number}"
        line = parsed_json(text, where, ServiceError)
        with in_form(where, "a kept record", ServiceError, "correct the line or remove it"):
            if "status" in line:
                known = line["status"] in STATUSES and type(line["ended"]) is int
            else:
                known = type(line["step"]) is int and isinstance(line["metrics"], dict)
            if not known:
                raise ValueError("expected a step with metrics, or a status with the time of the end")
        found.append(line)
    return found


def _send(client: MlflowClient, run_id: str, lines: list[dict[str, Any]]) -> None:
    Sender(client, run_id).send([(line["step"], line["metrics"]) for line in lines if "step" in line])
    for line in lines:
        # A later sign of life comes from a process that resumed the run, and will end it.
        if "status" in line and 1000 * last_sign(client.get_run(run_id).data.tags) <= line["ended"]:
            client.set_terminated(run_id, line["status"], line["ended"])


def lock_of(file: Path) -> Path:
    """The lock of a file of records, held by the process that writes or delivers it."""
    return file.parent / ".locks" / f"{file.stem}.lock"
