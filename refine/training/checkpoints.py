"""Folders that are there whole or not at all: checkpoints and final models.

A folder is written beside its place under a hidden name, its files' sizes are listed in `complete.json`, everything
is flushed to the disk, and only then is it renamed. What a killed process leaves is a hidden folder, which nobody
reads and the next start removes; a folder whose files do not match its list is ignored, with a line that says so.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from refine.errors import TrainingError
from refine.system.files import REPLACED, UNFINISHED, flush, remove_folder, replace_folder

MANIFEST = "complete.json"
PREFIX = "checkpoint-"
TORCH_WRITER = ("PytorchStreamWriter", "inline_container", "iostream error")  # what its errors name
log = logging.getLogger(__name__)


@contextlib.contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A staging folder to write to; it becomes `folder` when the block ends well, and vanishes when it does not.

    Raises TrainingError: the disk is full, or the place cannot be written to.
    """
    staging = folder.with_name(f".{folder.name}.unfinished")
    try:
        with told_in_words(folder):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            yield staging
            finish(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextlib.contextmanager
def told_in_words(place: Path) -> Iterator[None]:
    """Raises TrainingError where the block cannot write to `place` for want of room or leave; other errors pass on."""
    try:
        yield
    except TrainingError:
        raise
    except Exception as error:
        if (reason := _no_room(error)) is None:
            raise
        raise TrainingError(
            f"cannot write {place}: {reason}; free space there and start again: earlier checkpoints are whole"
        ) from error


def finish(staging: Path, folder: Path) -> None:
    """List the files of `staging` in its manifest, flush all to the disk, and rename it to `folder`."""
    sizes = {str(path.relative_to(staging)): path.stat().st_size for path in sorted(_files(staging))}
    (staging / MANIFEST).write_text(json.dumps(sizes, indent=1), encoding="utf-8")
    for path in [*_files(staging), staging]:
        flush(path)
    replace_folder(staging, folder)
    flush(folder.parent)


def is_whole(folder: Path) -> bool:
    """Whether every file that `folder` was finished with is there at its size."""
    try:
        sizes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def last_whole(output: Path) -> Path | None:
    """The latest whole checkpoint in `output`, or None. Says in a line of log which later ones it passes over."""
    for step, folder in sorted(_checkpoints(output), reverse=True):
        if is_whole(folder):
            return folder
        log.warning("%s is incomplete and is ignored: step %d is trained again", folder, step)
    return None


def whole(output: Path) -> list[tuple[int, Path]]:
    """The whole checkpoints in `output` with their steps, in order."""
    return [(step, folder) for step, folder in sorted(_checkpoints(output)) if is_whole(folder)]


def clean(output: Path) -> None:
    """Remove what killed processes left half written in `output`, and say so."""
    for left in output.glob(UNFINISHED):
        log.warning("%s was left half written by a process that ended; removed", left)
        left.unlink() if left.is_file() else shutil.rmtree(left)
    for left in output.glob(REPLACED):
        shutil.rmtree(left, ignore_errors=True)


def prune(output: Path, keep: int, always: Path | None = None) -> None:
    """Remove all but the `keep` latest checkpoints of `output`; `always` (the best one) stays."""
    older = sorted(_checkpoints(output), reverse=True)[keep:]
    for _, folder in older:
        if always is None or folder.resolve() != always.resolve():
            remove_folder(folder)


def _checkpoints(output: Path) -> list[tuple[int, Path]]:
    found = [(re.fullmatch(rf"{PREFIX}(\d+)", path.name), path) for path in output.glob(f"{PREFIX}*") if path.is_dir()]
    return [(int(match.group(1)), path) for match, path in found if match]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]


def _no_room(error: BaseException) -> str | None:
    """Why a file could not be written, for want of room or leave; torch and safetensors hide the errno in words, or
    raise anew what their writer stumbles over next."""
    reasons = {
        errno.ENOSPC: "No space left on device",
        errno.EDQUOT: "Disk quota exceeded",
        errno.EFBIG: "File too large",
        errno.EACCES: "Permission denied",
        errno.EROFS: "Read-only file system",
    }
    if isinstance(error, OSError) and error.errno in reasons:
        return reasons[error.errno]
    text = str(error)
    named = next((reason for reason in reasons.values() if reason in text), None)
    if named is None and any(writer in text for writer in TORCH_WRITER):
        named = "the file could not be written (is the disk full?)"
    return named or (None if error.__context__ is None else _no_room(error.__context__))
