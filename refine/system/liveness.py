"""Whether the process that owns a record is alive, on this machine or on another."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

OWNER, ALIVE = "refine.owner", "refine.alive"  # tags: the process (`owner`, JSON); Unix time of its last heartbeat [s]
BEAT = 20.0  # seconds between heartbeats
LOST = 90.0  # seconds without a heartbeat after which a process on another machine counts as dead


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
    last heartbeat, which may be LOST seconds old.

    now: Unix time [s] to compare the heartbeat with (default: the present time).
    """
    process_owner = json.loads(tags[OWNER])
    if process_owner["host"] == socket.gethostname():
        try:
            process = psutil.Process(process_owner["pid"])
            running = process.status() != psutil.STATUS_ZOMBIE
            same_start = abs(_started(process) - process_owner["started"]) < 1.0
            return running and process_owner.get("boot") == _boot() and same_start
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True
    return (now or time.time()) - float(tags.get(ALIVE, "0")) < LOST
