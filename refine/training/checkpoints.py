"""Checkpoints and final models: folders that are complete or ignored.

A folder is written under a hidden name beside its place. `complete.json` lists its files with size and SHA-256,
everything is flushed to the disk, and only then is the folder renamed. A killed process leaves a hidden folder, which
nobody reads and the next start removes. A folder whose files do not match its list is ignored, with a warning.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refine.errors import TrainingError
from refine.system.exhausted import disk_error
from refine.system.files import flush, remove_folder, replace_folder
from refine.system.leftovers import sweep

MANIFEST = "complete.json"
PREFIX = "checkpoint-"
log = logging.getLogger(__name__)


@contextlib.contextmanager
def written_completely(folder: Path) -> Iterator[Path]:
    """A staging folder to write to. It becomes `folder` when the block ends, and is removed when the block fails.

    Raises TrainingError: the disk is full, or the place cannot be written.
    """
    staging = staging_of(folder)
    try:
        with disk_errors_in_one_line(folder):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            yield staging
            finish(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def staging_of(folder: Path) -> Path:
    """The hidden folder that becomes `folder`: the same name in every process that writes to it."""
    return folder.with_name(f".{folder.name}.unfinished")


@contextlib.contextmanager
def disk_errors_in_one_line(place: Path) -> Iterator[None]:
    """Raises TrainingError, in one line, if the block fails because the disk is full or `place` is not writable.
    Other errors pass unchanged."""
    try:
        yield
    except TrainingError:
        raise
    except Exception as error:
        reason = disk_error(error)
        if reason is None:
            raise
        raise TrainingError(
            f"cannot write {place}: {reason}; free space there and start again: earlier checkpoints are complete"
        ) from error


def finish(staging: Path, folder: Path) -> None:
    """Write the manifest of `staging`, flush everything to the disk, and rename it to `folder`."""
    listed = {
        str(path.relative_to(staging)): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(_files(staging))
    }
    (staging / MANIFEST).write_text(json.dumps(listed, indent=1, allow_nan=False), encoding="utf-8")
    for path in [*_files(staging), staging]:
        flush(path)
    replace_folder(staging, folder)
    flush(folder.parent)


def is_complete(folder: Path) -> bool:
    """Whether every file that the manifest of `folder` lists is there with its size and its SHA-256 (older manifests
    list sizes alone)."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all(_is_as_listed(folder / name, wanted) for name, wanted in listed.items())
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return False


def _is_as_listed(path: Path, wanted: int | dict[str, Any]) -> bool:
    if isinstance(wanted, int):
        return path.stat().st_size == wanted
    return path.stat().st_size == wanted["size"] and _sha256(path) == wanted["sha256"]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def last_complete(output: Path) -> Path | None:
    """The latest complete checkpoint in `output`, or None. Logs a warning for each later, incomplete one."""
    for step, folder in sorted(_checkpoints(output), reverse=True):
        if is_complete(folder):
            return folder
        log.warning("%s is incomplete or damaged and is ignored: step %d is trained again", folder, step)
    return None


def complete(output: Path) -> list[tuple[int, Path]]:
    """The complete checkpoints in `output` with their steps, in order."""
    return [(step, folder) for step, folder in sorted(_checkpoints(output)) if is_complete(folder)]


def clean(output: Path) -> None:
    """Remove unfinished files and folders of killed processes from `output`, whose lock is held; log a warning for
    each."""
    for left in sweep(output, locked=True):
        log.warning("removed %s, which a killed process left unfinished", left)


def prune(output: Path, keep: int, always: Path | None = None) -> None:
    """Remove all but the `keep` latest checkpoints of `output`; `always` (the best checkpoint) stays."""
    older = sorted(_checkpoints(output), reverse=True)[keep:]
    for _, folder in older:
        if always is None or folder.resolve() != always.resolve():
            remove_folder(folder)


def _checkpoints(output: Path) -> list[tuple[int, Path]]:
    """The checkpoints in `output`, complete or not, with their steps."""
    found = [(re.fullmatch(rf"{PREFIX}(\d+)", path.name), path) for path in output.glob(f"{PREFIX}*") if path.is_dir()]
    return [(int(match.group(1)), path) for match, path in found if match]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
