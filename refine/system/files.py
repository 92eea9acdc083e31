"""Files and folders that are whole or not there: written beside their place, then renamed into it.

A process that is killed leaves a hidden file or folder beside the place, `.NAME....unfinished`, which nobody reads.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refine.errors import DataError

UNFINISHED = ".*.unfinished"  # pattern of what killed processes leave
REPLACED = ".*.replaced"  # pattern of former folders that a killed process was about to remove


@contextmanager
def file_beside(path: str | Path) -> Iterator[Path]:
    """A hidden file name beside `path`. What the block writes there takes the place of `path` when the block ends, and
    is removed when the block fails. Missing parent folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` to `path`, whole or not at all, as UTF-8. Returns the path."""
    with file_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` to `path` as JSON, whole or not at all, and wait until the disk has it. Returns the path."""
    with file_beside(path) as beside:
        beside.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        flush(beside)
    return Path(path)


def write_picture(path: str | Path, figure: Any, **options: Any) -> Path:
    """Write a matplotlib figure to `path`, whole or not at all; the ending says its form (.png, .svg, .pdf).

    `options` go to `Figure.savefig`. Returns the path.
    """
    path = Path(path)
    with file_beside(path) as beside:
        figure.savefig(beside, format=path.suffix.removeprefix("."), **options)
    return path


@contextmanager
def folder_beside(folder: str | Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its place when the block ends, and is removed when the block fails.

    What `folder` held before is replaced. Raises DataError if the place cannot be written.
    """
    folder = Path(folder)
    with _writable(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".unfinished", dir=folder.parent))
        beside.chmod(0o755)  # mkdtemp makes it private; what is written is not
    try:
        yield beside
        with _writable(folder):
            replace_folder(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`. A folder that is not empty cannot be replaced in one step, so the old one is renamed
    first, and put back if the second step fails."""
    if not folder.exists():
        os.replace(new, folder)
        return
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
    """Remove `folder`. It is renamed first, so that a process killed meanwhile leaves no half folder under its name."""
    hidden = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until the disk has what was written to a file, or the names in a folder."""
    if os.name == "nt" and path.is_dir():  # Windows has no handle on a folder
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
def _writable(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{place}: cannot be written ({error.strerror or error}); free the place or make it writable"
        ) from None
