"""Share the devices of this machine: one training process per device, however many runs there are.

A machine without GPUs counts as two devices, each with half of the cores: a small model trains hardly faster on two
cores than on one, so two trainings at once are done sooner than one after the other.

A lock file holds a device (`refine.system.locks`), so the device is free again when its process dies.
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
from refine.system.files import private_folder, why_not_writable
from refine.system.locks import EVERY, holder, try_hold

VARIABLE = "REFINE_DEVICES"  # devices to use: how many, or their numbers, as in 0,1
THREADS = "OMP_NUM_THREADS"
VISIBLE = "CUDA_VISIBLE_DEVICES"
LOCKS = "REFINE_LOCKS"  # folder of the locks (default: in the machine's temporary folder)


def devices() -> list[str]:
    """The devices that training may use: numbers of GPUs, or without any `cpu0` and `cpu1` (`cpu0` on one core).

    Raises SettingError: REFINE_DEVICES is neither a number nor a list of numbers.
    """
    value = os.environ.get(VARIABLE)
    if value:
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdigit() for part in parts) or parts == ["0"]:
            raise SettingError(
                f"{VARIABLE} is {value!r}: expected the number of devices, or a list of their numbers, as in 0,1"
            )
        return parts if len(parts) > 1 else [str(number) for number in range(int(parts[0]))]
    visible = os.environ.get(VISIBLE)
    if visible:
        return [part.strip() for part in visible.split(",") if part.strip()]
    gpus = _gpus() if visible is None else 0
    return [str(number) for number in range(gpus)] if gpus else [f"cpu{half}" for half in range(min(2, _cores()))]


@contextlib.contextmanager
def device_slots(count: int, name: str, say: Callable[[str], None]) -> Iterator[dict[str, str]]:
    """Hold `count` devices (or all, if there are fewer) for the run `name`. Yields the environment variables that
    restrict a process to them. While too few are free it waits; `say` gets one line about that."""
    known = devices()
    count = min(count, len(known))
    announced = False
    while (held := _take(known, count, name)) is None:
        if not announced:
            wanted = "a device" if count == 1 else f"{count} devices"
            holders = dict.fromkeys(holder(_lock_file(device)) for device in known)
            say(f"{name}: waits for {wanted}; held by {', '.join(holders)}")
            announced = True
        time.sleep(EVERY)
    try:
        yield _variables(list(held), known)
    finally:
        for lock in held.values():
            lock.release()


def shared_variables() -> dict[str, str] | None:
    """What `device_slots` yields for one device, where that is the same for each: on a machine without GPUs, or with
    none to be used. None for GPUs."""
    known = devices()
    chosen = _variables(known[:1], known)
    return None if VISIBLE in chosen else chosen


def _variables(held: list[str], known: list[str]) -> dict[str, str]:
    """What restricts a process to the devices `held` of all that are `known`: GPUs, or its share of the cores, unless
    the user has set a number of threads."""
    if not known[0].startswith("cpu") and _gpus():
        return {VISIBLE: ",".join(held)}
    if THREADS in os.environ:
        return {}
    return {THREADS: str(max(1, _cores() * len(held) // len(known)))}


def _take(known: list[str], count: int, name: str) -> dict[str, FileLock] | None:
    """The locks of `count` devices, by device. If fewer are free: None, and it holds none."""
    held: dict[str, FileLock] = {}
    for device in known:
        if len(held) < count and (lock := try_hold(_lock_file(device), f"{name} (process {os.getpid()})")) is not None:
            held[device] = lock
    if len(held) == count:
        return held
    for lock in held.values():
        lock.release()
    return None


def _lock_file(device: str) -> Path:
    """In a folder of the machine, not of $REFINE_HOME: all homes share the devices. A folder that the user names may
    be shared with other users; the default lies where everyone can write, so it must be this user's alone.

    Raises SettingError: the folder cannot be made, or the default one is not this user's.
    """
    named = os.environ.get(LOCKS)
    if named is None or not named.strip():
        folder = Path(tempfile.gettempdir()) / f"refine-devices-{os.getuid()}"
        private_folder(folder, f"set {LOCKS} to a folder of yours, the same for all your runs")
        return folder / f"{device}.lock"
    if obstacle := why_not_writable(Path(named)):
        raise SettingError(f"{LOCKS}: {named} cannot be written to ({obstacle}); name another folder")
    return Path(named) / f"{device}.lock"


def _gpus() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    return len(listed.stdout.splitlines()) if listed.returncode == 0 else 0


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
