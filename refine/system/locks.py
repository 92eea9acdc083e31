"""Locks between processes. The operating system releases a lock when its holder ends, however it ends.

Beside each lock file lies `NAME.holder`, the name of the process that holds it, for the messages of those that wait.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

EVERY = 0.5  # seconds between attempts


class Locked(Exception):
    """Another process held the lock for longer than the caller would wait. `holder`: its name."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path} is held by {holder}")
        self.holder = holder


def try_hold(path: Path, name: str) -> FileLock | None:
    """Take the lock at `path` under `name`, or return None at once if another process has it. `release()` ends it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    _holder_file(path).write_text(name, encoding="utf-8")
    return lock


@contextlib.contextmanager
def hold(
    path: Path,
    name: str,
    patience: float | None = None,
    waiting: Callable[[str], None] = lambda holder: None,
) -> Iterator[None]:
    """Hold the lock at `path` under `name` for the block.

    If another process has it, `waiting` is called once with that process's name. `patience` [s]: how long to wait;
    None waits for ever. Raises Locked after that.
    """
    started = time.monotonic()
    told = False
    while (lock := try_hold(path, name)) is None:
        if patience is not None and time.monotonic() - started >= patience:
            raise Locked(path, holder(path))
        if not told:
            waiting(holder(path))
            told = True
        time.sleep(EVERY if patience is None else min(EVERY, patience / 10))
    try:
        yield
    finally:
        lock.release()


def holder(path: Path) -> str:
    """The name that the holder of the lock at `path` gave."""
    try:
        return _holder_file(path).read_text(encoding="utf-8") or "another process"
    except FileNotFoundError:
        return "another process"


def stage_lock(folder: Path, name: str, say: Callable[[str], None]) -> contextlib.AbstractContextManager[None]:
    """Hold the stage whose results go to `folder`, so that two runs that need it train it once."""
    path = folder.parent / ".locks" / f"{folder.name}.lock"
    return hold(path, name, waiting=lambda _: say(f"{name}: another run is doing this stage; waiting for its result"))


def _holder_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.holder")
