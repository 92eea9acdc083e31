"""Who may train now: one process a device, and one a stage, however many runs there are on this machine.

Both are locks of the operating system, which lets go of them when a process ends, however it ends. CPU stages take
none. A run that waits says for whom.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from refine.errors import SettingError

VARIABLE = "REFINE_DEVICES"  # devices to share out: how many, or their numbers, as in 0,1
LOCKS = "REFINE_LOCKS"  # folder of the locks of devices; default: in the machine's temporary folder
EVERY = 0.5  # seconds between attempts


def devices() -> list[str]:
    """The devices of this machine that training may use: numbers of GPUs, or `cpu`, once.

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
    """Hold `count` devices (fewer where there are fewer) for the run `name`; gives the environment that picks them."""
    there = devices()
    count = min(count, len(there))
    told = False
    while (held := _take(there, count, name)) is None:
        if not told:
            wanted = "a device" if count == 1 else f"{count} devices"
            say(f"{name}: waits for {wanted}; held by {', '.join(_holders(there))}")
            told = True
        time.sleep(EVERY)
    try:
        chosen = [there[n] for n in held]
        yield {} if chosen == ["cpu"] or not _gpus() else {"CUDA_VISIBLE_DEVICES": ",".join(chosen)}
    finally:
        for file in held.values():
            file.close()


@contextlib.contextmanager
def stage_lock(folder: Path, name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the stage whose results go to `folder`: two runs that need the same one train it once."""
    path = folder.parent / ".locks" / f"{folder.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while (file := _locked(path, name)) is None:
        if not told:
            say(f"{name}: is being done by another run; waits for its result")
            told = True
        time.sleep(EVERY)
    try:
        yield
    finally:
        file.close()


def _take(there: list[str], count: int, name: str) -> dict[int, IO[str]] | None:
    """Locks of `count` devices, by their place in `there`; None where fewer are free, and then none is held."""
    held: dict[int, IO[str]] = {}
    for n, device in enumerate(there):
        if len(held) < count and (file := _locked(_lock_file(device), name)) is not None:
            held[n] = file
    if len(held) == count:
        return held
    for file in held.values():
        file.close()
    return None


def _locked(path: Path, name: str) -> IO[str] | None:
    """The open file, locked for this process and with `name` in it; None where another has it."""
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    file.seek(0)
    file.truncate()
    file.write(f"{name} (process {os.getpid()})")
    file.flush()
    return file


def _holders(there: list[str]) -> list[str]:
    told = [_lock_file(device).read_text(encoding="utf-8") for device in there if _lock_file(device).exists()]
    return list(dict.fromkeys(text for text in told if text)) or ["another run"]


def _lock_file(device: str) -> Path:
    """Of the machine, not of a home: two homes share its devices."""
    folder = Path(os.environ.get(LOCKS) or Path(tempfile.gettempdir()) / f"refine-devices-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / f"{device}.lock"


def _gpus() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    asked = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    return len(asked.stdout.splitlines()) if asked.returncode == 0 else 0
