"""Whether the process that owns a record is alive, on this machine or on another."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from refine.errors import ServiceError, reason
from refine.system.readers import in_form, parsed_json

OWNER, ALIVE = "refine.owner", "refine.alive"  # tags: the process (`owner`, JSON); Unix time of its last heartbeat [s]
BEAT = 20.0  # seconds between heartbeats
LOST = 90.0  # seconds without a heartbeat after which a process on another machine counts as dead

log = logging.getLogger(__name__)


def owner() -> dict[str, Any]:
    """The machine, id and start of this process, which no other process shares. started: seconds after the boot, as
    the clock may be set while the process runs (after a suspension, for example); boot: id of that boot."""
    process = psutil.Process()
    return {"host": socket.gethostname(), "boot": _boot(), "pid": process.pid, "started": _started(process)}


def _started(process: psutil.Process) -> float:
    booted = psutil.boot_time()  # first: in older versions of psutil create_time uses this call's result
    return process.create_time() - booted


def _boot() -> str:
    """The id of this boot; empty on systems without one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def alive(tags: Mapping[str, Any], now: float | None = None) -> bool:
    """Whether the process of the tag OWNER is alive. On this machine the process table decides; on another machine the
    last heartbeat, which may be LOST seconds old. It decides too, with a warning, if OWNER is not what `owner` gives.

    now: Unix time [s] to compare the heartbeat with (default: the present time).
    """
    try:
        host, boot, pid, started = _owner_in(tags[OWNER])
    except ServiceError as error:
        log.warning("%s: its last sign of life decides whether it is alive", error)
        host, boot, pid, started = "", "", 0, 0.0
    if host == socket.gethostname():
        try:
            process = psutil.Process(pid)
            running = process.status() != psutil.STATUS_ZOMBIE
            return running and boot == _boot() and abs(_started(process) - started) < 1.0
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True
    return (now or time.time()) - last_sign(tags) < LOST


def last_sign(tags: Mapping[str, Any]) -> float:
    """Unix time of the last heartbeat in the tag ALIVE [s]; 0 without one, or if it is no number."""
    try:
        return float(tags.get(ALIVE, 0))
    except (TypeError, ValueError, OverflowError):
        log.warning("tag %s is %s: expected a time in seconds", ALIVE, reason(repr(tags[ALIVE]), 40))
        return 0.0


def _owner_in(tag: Any) -> tuple[str, str, int, float]:
    """(host, boot, process id, start) in the tag OWNER. Raises ServiceError: it is not what `owner` gives."""
    where = f"tag {OWNER}"
    with in_form(where, "the owner of a run", ServiceError):
        found = parsed_json(tag, where, ServiceError)
        host, boot, pid, started = found["host"], found.get("boot", ""), found["pid"], found["started"]
        if not (isinstance(host, str) and isinstance(boot, str) and isinstance(started, int | float)):
            raise TypeError("expected host and boot as text, and started as seconds")
        if not isinstance(pid, int) or not 0 < pid < 2**31:
            raise ValueError(f"pid is {reason(repr(pid), 40)}: expected the id of a process")
        return host, boot, pid, float(started)
