"""Write files and folders completely or not at all: write under a hidden name beside the place, then rename.

A killed process leaves a hidden file or folder beside the place, which nobody reads and the next start removes
(`refine.system.leftovers`). A place that is a link stays one: what it points to is replaced.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refine.errors import DataError, RefineError, SettingError
from refine.system.exhausted import is_full_disk
from refine.system.leftovers import hidden, mark, sweep


@contextmanager
def file_beside(path: str | Path) -> Iterator[Path]:
    """A hidden file name beside `path`. The file written there replaces `path` when the block ends, and is removed
    when the block fails. Creates missing parent folders. Raises DataError: the place cannot be written, or is full."""
    path = _behind_link(path)
    with _writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    beside = hidden(path, "unfinished")
    try:
        with _not_full(path):
            yield beside
        with _writable(path):
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` to `path` as UTF-8, completely or not at all. Returns the path."""
    with file_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` to `path` as JSON, completely or not at all, and flush it to the disk. Returns the path.

    Raises ValueError if a number in it is NaN or infinite, which JSON cannot say.
    """
    with file_beside(path) as beside:
        beside.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
        flush(beside)
    return Path(path)


def json_values(row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` with null in the place of numbers that are NaN or infinite, which JSON cannot say."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


def write_private(path: str | Path, text: str) -> Path:
    """Write `text` to `path`, completely or not at all, readable by this user alone. Returns the path."""
    with file_beside(path) as beside:
        beside.touch(mode=0o600)
        beside.write_text(text, encoding="utf-8")
    return Path(path)


def write_picture(path: str | Path, figure: Any, **options: Any) -> Path:
    """Write a matplotlib figure to `path`, completely or not at all. The suffix gives the format (.png, .svg, .pdf).

    `options` go to `Figure.savefig`. Returns the path.
    """
    path = Path(path)
    with file_beside(path) as beside:
        figure.savefig(beside, format=path.suffix.removeprefix("."), **options)
    return path


@contextmanager
def folder_beside(folder: str | Path) -> Iterator[Path]:
    """An empty folder beside `folder`. It replaces `folder` when the block ends, and is removed when the block fails.

    Raises DataError if the place cannot be written, or is full.
    """
    folder = _behind_link(folder)
    with _writable(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent, only=folder.name)
        prefix = f".{folder.name}.{mark()}."
        beside = Path(tempfile.mkdtemp(prefix=prefix, suffix=".unfinished", dir=folder.parent))
        beside.chmod(0o755)  # mkdtemp makes it private; others must be able to read the result
    try:
        with _not_full(folder):
            yield beside
        with _writable(folder):
            replace_folder(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`. The system cannot replace a folder that is not empty, so the old one is renamed first,
    and renamed back if the second step fails."""
    if not folder.exists():
        os.replace(new, folder)
        return
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    old = hidden(folder, "replaced")
    os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        os.replace(old, folder)
        raise
    remove_folder(old, of=folder)


def remove_folder(folder: Path, of: Path | None = None) -> None:
    """Remove `folder`. Renames it first, so that a kill in between leaves no half folder under its name.

    of: the folder whose old content this is (default: itself).
    """
    removed = hidden(of or folder, "removed")
    shutil.rmtree(removed, ignore_errors=True)
    os.rename(folder, removed)
    shutil.rmtree(removed, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def private_folder(folder: Path, advice: str) -> Path:
    """Make `folder`, in a place that others can write to, for this user alone. Returns it.

    Raises SettingError, which ends with `advice`: it cannot be made, or what lies there is a link, another user's, or
    open to others' writing.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise SettingError(f"{folder}: cannot be made a folder ({error.strerror or error}); {advice}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise SettingError(f"{folder} is a link: expected a folder of yours; {advice}")
    if found.st_uid != os.getuid():
        raise SettingError(f"{folder} belongs to user {found.st_uid}: expected a folder of yours; {advice}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SettingError(f"{folder} can be written to by other users: `chmod 700 {folder}`, or {advice}")
    return folder


def open_without_following(path: str | Path, flags: int) -> int:
    """`os.open`, for `os.fdopen`; with O_CREAT, readable by others. Raises OSError if `path` is a link."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o644)


def why_not_writable(folder: Path) -> str | None:
    """Make `folder`, then write and remove a file in it. Returns the system's reason if that fails, else None."""
    probe = hidden(folder / "probe", "unfinished")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)  # another thread may have made and removed it
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


def _behind_link(place: str | Path) -> Path:
    """`place`, or what it points to if it is a link."""
    return Path(place).resolve() if Path(place).is_symlink() else Path(place)


@contextmanager
def _not_full(place: Path) -> Iterator[None]:
    try:
        yield
    except RefineError:
        raise
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise DataError(
            f"{place}: cannot be written (No space left on device); free space there and run again"
        ) from error


@contextmanager
def _writable(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{place}: cannot be written ({error.strerror or error}); make it writable or choose another place"
        ) from None
