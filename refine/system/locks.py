"""Locks between processes. The operating system releases a lock when its holder ends, however it ends.

The file `NAME.holder` beside a lock file has the name of its holder, for the messages of waiting processes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from refine.errors import SettingError
from refine.system.files import open_without_following

WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
EVERY = 0.5  # seconds between attempts


class Locked(Exception):
    """Another process, `holder`, holds the lock, and the caller does not wait longer."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path} is held by {holder}")
        self.holder = holder


def try_hold(path: Path, name: str) -> FileLock | None:
    """Take the lock at `path` under `name`, or return None if another process holds it. `release()` frees it.

    Raises SettingError: the files cannot be opened, one of them is a link, or their file system has no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(path, error) from None
    # Not the package's substitute for file systems without locks: what a killed process leaves there looks held.
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        raise _unusable(path, error) from None
    try:
        with os.fdopen(open_without_following(_holder_file(path), WRITE), "w", encoding="utf-8") as file:
            file.write(name)
    except OSError as error:
        lock.release()
        raise _unusable(_holder_file(path), error) from None
    return lock


@contextlib.contextmanager
def hold(
    path: Path,
    name: str,
    patience: float | None = None,
    waiting: Callable[[str], None] = lambda holder: None,
) -> Iterator[None]:
    """Hold the lock at `path` under `name` for the block.

    If another process holds it, calls `waiting` once with that process's name, and waits for `patience` seconds (None:
    without end). Raises Locked after that.
    """
    started = time.monotonic()
    announced = False
    while (lock := try_hold(path, name)) is None:
        if patience is not None and time.monotonic() - started >= patience:
            raise Locked(path, holder(path))
        if not announced:
            waiting(holder(path))
            announced = True
        time.sleep(EVERY if patience is None else min(EVERY, patience / 10))
    try:
        yield
    finally:
        lock.release()


def holder(path: Path) -> str:
    """The name of the holder of the lock at `path`."""
    try:
        with os.fdopen(open_without_following(_holder_file(path), os.O_RDONLY), encoding="utf-8") as file:
            return file.read(200) or "another process"
    except (OSError, ValueError):
        return "another process"


def stage_lock(folder: Path, name: str, say: Callable[[str], None]) -> contextlib.AbstractContextManager[None]:
    """Hold the stage that writes to `folder`, so that two runs that need it do not both train it."""
    path = folder.parent / ".locks" / f"{folder.name}.lock"
    return hold(path, name, waiting=lambda _: say(f"{name}: another run is doing this stage; waiting for its result"))


def _unusable(path: Path, error: OSError | NotImplementedError) -> SettingError:
    if not isinstance(error, OSError) or error.errno == errno.ENOSYS:
        return SettingError(f"{path}: this file system has no locks (flock); put the folder on another one")
    why = "it is a link" if error.errno == errno.ELOOP else error.strerror or str(error)
    return SettingError(f"{path}: cannot be used as a lock ({why}); remove it, or make its folder writable")


def _holder_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.holder")
