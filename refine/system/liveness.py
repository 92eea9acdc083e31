"""Whether the process that owns a record still lives, on this machine or on another one."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

OWNER, ALIVE = "refine.owner", "refine.alive"  # tags


BEAT = 20.0  # seconds between signs of life


LOST = 90.0  # seconds of silence after which a run of another machine counts as dead


def owner() -> dict[str, Any]:
    """This process: its machine, id and start, which together nobody else has. started: seconds after the machine
    booted, since the clock may be set while it runs (after a suspension, say); boot: which boot that was."""
    process = psutil.Process()
    return {"host": socket.gethostname(), "boot": _boot(), "pid": process.pid, "started": _started(process)}


def _started(process: psutil.Process) -> float:
    booted = psutil.boot_time()  # first: older versions of psutil remember it for create_time
    return process.create_time() - booted


def _boot() -> str:
    """Of this boot alone; empty on systems that do not name theirs."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def alive(tags: Mapping[str, Any], now: float | None = None) -> bool:
    """Whether the process that OWNER names lives: on this machine by looking, on others by its last sign of life.

    now: Unix time [s] at which that sign may be LOST seconds old; the present one by default.
    """
    told = json.loads(tags[OWNER])
    if told["host"] == socket.gethostname():
        try:
            process = psutil.Process(told["pid"])
            running = process.status() != psutil.STATUS_ZOMBIE
            return running and told.get("boot") == _boot() and abs(_started(process) - told["started"]) < 1.0
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True
    return (now or time.time()) - float(tags.get(ALIVE, "0")) < LOST
