"""Write files and folders completely or not at all: write under a hidden name beside the place, then rename.

A killed process leaves a hidden file or folder beside the place, `.NAME....unfinished`, which nobody reads.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refine.errors import DataError, RefineError
from refine.system.exhausted import is_full_disk

UNFINISHED = ".*.unfinished"  # pattern of what killed processes leave
REPLACED = ".*.replaced"  # pattern of old folders that a killed process did not remove


@contextmanager
def file_beside(path: str | Path) -> Iterator[Path]:
    """A hidden file name beside `path`. The file written there replaces `path` when the block ends, and is removed
    when the block fails. Creates missing parent folders. Raises DataError: the place cannot be written, or is full."""
    path = Path(path)
    with _writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
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
    """Write `value` to `path` as JSON, completely or not at all, and flush it to the disk. Returns the path."""
    with file_beside(path) as beside:
        beside.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        flush(beside)
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
    folder = Path(folder)
    with _writable(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".unfinished", dir=folder.parent))
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
    old = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove `folder`. Renames it first, so that a kill in between leaves no half folder under its name."""
    hidden = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def why_not_writable(folder: Path) -> str | None:
    """Make `folder`, then write and remove a file in it. Returns the system's reason if that fails, else None."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


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
