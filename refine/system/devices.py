"""The devices of this machine, shared out: one training process a device, however many runs there are.

A device is held by a lock file (`refine.system.locks`), so a process that dies gives it back.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock

from refine.errors import SettingError
from refine.system.locks import EVERY, holder, try_hold

VARIABLE = "REFINE_DEVICES"  # devices to share out: how many, or their numbers, as in 0,1
LOCKS = "REFINE_LOCKS"  # folder of the devices' locks; default: in the machine's temporary folder


def devices() -> list[str]:
    """The devices that training may use: numbers of GPUs, or `cpu`, once.

    Raises SettingError: REFINE_DEVICES is neither a number nor a list of numbers.
    """
    told = os.environ.get(VARIABLE)
    if told:
        parts = [part.strip() for part in told.split(",")]
        if not all(part.isdigit() for part in parts) or parts == ["0"]:
            raise SettingError(
                f"{VARIABLE} is {told!r}: expected how many devices there are, or their numbers, as in 0,1"
            )
        return parts if len(parts) > 1 else [str(number) for number in range(int(parts[0]))]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return [part.strip() for part in visible.split(",") if part.strip()]
    return [str(number) for number in range(_gpus())] if visible is None and _gpus() else ["cpu"]


@contextlib.contextmanager
def device_slots(count: int, name: str, say: Callable[[str], None]) -> Iterator[dict[str, str]]:
    """Hold `count` devices (all of them where there are fewer) for the run `name`. Gives the environment variables
    that restrict a process to them."""
    there = devices()
    count = min(count, len(there))
    told = False
    while (held := _take(there, count, name)) is None:
        if not told:
            wanted = "a device" if count == 1 else f"{count} devices"
            holders = dict.fromkeys(holder(_lock_file(device)) for device in there)
            say(f"{name}: waits for {wanted}; held by {', '.join(holders)}")
            told = True
        time.sleep(EVERY)
    try:
        chosen = list(held)
        yield {} if chosen == ["cpu"] or not _gpus() else {"CUDA_VISIBLE_DEVICES": ",".join(chosen)}
    finally:
        for lock in held.values():
            lock.release()


def _take(there: list[str], count: int, name: str) -> dict[str, FileLock] | None:
    """Locks of `count` devices by their names. None where fewer are free; then none is held."""
    held: dict[str, FileLock] = {}
    for device in there:
        if len(held) < count and (lock := try_hold(_lock_file(device), f"{name} (process {os.getpid()})")) is not None:
            held[device] = lock
    if len(held) == count:
        return held
    for lock in held.values():
        lock.release()
    return None


def _lock_file(device: str) -> Path:
    """On the machine, not in a home: two homes share its devices."""
    folder = Path(os.environ.get(LOCKS) or Path(tempfile.gettempdir()) / f"refine-devices-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / f"{device}.lock"


def _gpus() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    asked = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    return len(asked.stdout.splitlines()) if asked.returncode == 0 else 0
