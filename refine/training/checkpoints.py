"""Checkpoints and final models: folders that are complete or ignored.

A folder is written under a hidden name beside its place. `complete.json` lists its files with size and SHA-256,
everything is flushed to the disk, and only then is the folder renamed. A killed process leaves a hidden folder, which
nobody reads and the next start removes. A folder whose files do not match its list is ignored, with a warning.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refine.errors import TrainingError, reason
from refine.paths import SHARDS
from refine.system.digests import sha256_of
from refine.system.exhausted import disk_error
from refine.system.files import flush, remove_folder, replace_folder
from refine.system.leftovers import sweep
from refine.system.readers import in_form, read_json

MANIFEST = "complete.json"
PREFIX = "checkpoint-"
Listed = dict[str, dict[str, Any]]  # size and SHA-256 of files, by their paths in the folder
log = logging.getLogger(__name__)


def is_sharded(checkpoint: Path) -> bool:
    """Whether `checkpoint` holds the parts that each process of a training has written."""
    return (checkpoint / SHARDS).is_dir()


@contextlib.contextmanager
def written_completely(folder: Path, known: Listed | None = None) -> Iterator[Path]:
    """A staging folder to write to. It becomes `folder` when the block ends, and is removed when the block fails.

    `known`: files whose size and SHA-256 those who wrote them have put in by then; they are not read again.

    Raises TrainingError: the disk is full, or the place cannot be written.
    """
    staging = staging_of(folder)
    try:
        with disk_errors_in_one_line(folder):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            yield staging
            finish(staging, folder, known or {})
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


def finish(staging: Path, folder: Path, known: Listed) -> None:
    """Write the manifest of `staging`, flush everything to the disk, and rename it to `folder`."""
    names = [str(path.relative_to(staging)) for path in sorted(_files(staging))]
    listed = {name: known.get(name) or entry(staging / name) for name in names}
    (staging / MANIFEST).write_text(json.dumps(listed, indent=1, allow_nan=False), encoding="utf-8")
    for path in [*_files(staging), staging]:
        flush(path)
    replace_folder(staging, folder)
    flush(folder.parent)


def entry(file: Path) -> dict[str, Any]:
    """What a manifest says of `file`."""
    return {"size": file.stat().st_size, "sha256": sha256_of(file)}


def is_complete(folder: Path) -> bool:
    """Whether every file that the manifest of `folder` lists is there with its size and its SHA-256 (older manifests
    list sizes alone)."""
    return damage(folder) is None


def damage(folder: Path, contents: bool = True) -> str | None:
    """What makes `folder` incomplete or damaged: the first file that is not as the manifest lists it, or what is wrong
    with the manifest. None for a complete folder. Without `contents` only sizes are compared."""
    what = "a list of files with size and SHA-256"
    try:
        listed = read_json(folder / MANIFEST, what, TrainingError, "is missing, so the folder is unfinished")
        with in_form(folder / MANIFEST, what, TrainingError):
            if not listed:
                raise ValueError("it lists no file")
            each = (_differs(folder, name, wanted, contents) for name, wanted in listed.items())
            return next((found for found in each if found), None)
    except TrainingError as error:
        return str(error)
    except OSError as error:
        return reason(error)


def _differs(folder: Path, name: str, wanted: int | dict[str, Any], contents: bool) -> str | None:
    """How the file `name` differs from what the manifest lists: a size, or size and SHA-256. None if it does not."""
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{reason(repr(name), 80)} is no file of the folder")
    if not path.is_file():
        return f"{path} is missing"
    size = wanted if type(wanted) is int else wanted["size"]  # type: ignore[index]
    if path.stat().st_size != size:
        return f"{path} has {path.stat().st_size} bytes instead of {reason(repr(size), 40)}"
    if contents and type(wanted) is not int and sha256_of(path) != wanted["sha256"]:  # type: ignore[index]
        return f"{path} has other bytes than when it was written"
    return None


def last_complete(output: Path) -> Path | None:
    """The latest complete checkpoint in `output`, or None. Logs a warning for each later, incomplete one."""
    for step, folder in sorted(_checkpoints(output), reverse=True):
        found = damage(folder)
        if found is None:
            return folder
        log.warning("%s is incomplete or damaged and is ignored: step %d is trained again (%s)", folder, step, found)
    return None


def wait_until_complete(folder: Path, patience: float) -> None:
    """Return as soon as `folder`, which another process has seen complete, is complete here too: a shared file system
    may show it later. Of a sharded checkpoint, which is large, only the sizes of files are compared here.

    Raises TrainingError: it is not complete after `patience` seconds.
    """
    end = time.monotonic() + patience
    while found := damage(folder, contents=not is_sharded(folder)):
        if time.monotonic() > end:
            raise TrainingError(
                f"process 0 resumes from {folder}, but this process still finds it incomplete after {patience:.0f} "
                f"seconds ({found}): all processes need one shared folder"
            )
        time.sleep(min(1.0, patience / 10))


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
