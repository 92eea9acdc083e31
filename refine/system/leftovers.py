"""What killed processes leave behind: unfinished files and folders. The next start of a command removes them.

The name of everything that may be left carries the machine and process that owns it, as in
`.data.1f2e3d4c-4711.abc.unfinished`. What a living process owns is never touched. What belongs to another machine, or
has no owner in its name, is removed after a day, or if the caller holds the lock of the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

UNFINISHED = ".*.unfinished"  # being written, beside the place where it will be
REPLACED = ".*.replaced"  # the old content of a folder, whole, while the new one takes its place
REMOVED = ".*.removed"  # being removed
OLD = 24 * 3600.0  # seconds without a change after which a thing of unknown owner counts as left
STARTED_AFTER = 60.0  # a process that started so many seconds after the last change is another one with the same id
OWNED = re.compile(r"\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)\.")


def mark() -> str:
    """The part of a name that says that this process owns it."""
    return f"{_machine()}-{os.getpid()}"


def hidden(place: Path, suffix: str) -> Path:
    """The hidden name beside `place` under which this process writes (`unfinished`), replaces or removes it."""
    return place.with_name(f".{place.name}.{mark()}.{suffix}")


def sweep(folder: str | Path, *patterns: str, only: str = "", locked: bool = False) -> list[Path]:
    """Remove what killed processes left in `folder` (not below it), and return that. A folder whose replacement was cut
    short is put back under its name.

    patterns: of more names than the hidden ones of `refine.system.files`. only: nothing but what was left of writing
    the file or folder of this name. locked: the caller holds the lock of `folder`: no other process writes there.
    """
    folder, swept = Path(folder), []
    found = sorted(path for pattern in (UNFINISHED, REPLACED, REMOVED, *patterns) for path in folder.glob(pattern))
    for left in found:
        if left.name.startswith(f".{only}." if only else "") and (locked or _is_left(left)):
            with contextlib.suppress(OSError):  # another process sweeps too, or it belongs to another user
                _remove(left)
                swept.append(left)
    return swept


@contextlib.contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """A new folder `refine-PURPOSE...` in the machine's temporary folder, which is removed when the block ends. Those
    that killed processes left are removed first."""
    parent = Path(tempfile.gettempdir())
    for left in parent.glob(f"refine-{purpose}[.-]*"):
        if _is_mine(left) and _is_left(left):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"refine-{purpose}.{mark()}.", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _remove(left: Path) -> None:
    if left.match(REPLACED) and not (place := _place_of(left)).exists():
        left.rename(place)
    elif left.is_dir() and not left.is_symlink():
        shutil.rmtree(left)
    else:
        left.unlink()


def _place_of(replaced: Path) -> Path:
    """`.NAME.OWNER.replaced` -> NAME."""
    return replaced.with_name(re.sub(r"(\.[0-9a-f]{8}-\d+)?\.replaced$", "", replaced.name).removeprefix("."))


def _is_left(path: Path) -> bool:
    """Whether no living process can own `path`."""
    changed = _last_change(path)
    owner = OWNED.search(path.name)
    if owner is None or owner["machine"] != _machine():
        return time.time() - changed > OLD
    return not _lives(int(owner["pid"]), changed)


def _lives(pid: int, changed: float) -> bool:
    """Whether process `pid` runs and may have made what was last changed at Unix time `changed`."""
    import psutil

    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() < changed + STARTED_AFTER
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _last_change(path: Path) -> float:
    """Unix time of the last change of `path`, or of anything below it."""
    times = [time.time()]
    with contextlib.suppress(OSError):
        times = [path.lstat().st_mtime]
        times += [inner.lstat().st_mtime for inner in path.rglob("*")] if path.is_dir() else []
    return max(times)


def _is_mine(path: Path) -> bool:
    """Whether `path` is a folder of this user, and no link: anyone can write to the machine's temporary folder."""
    with contextlib.suppress(OSError):
        return path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.getuid()
    return False


def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
