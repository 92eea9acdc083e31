"""Errors of a machine that has no memory or disk space left, or lets nobody write: recognised, and put in one line."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator

from refine.errors import RefineError

NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Storage size calculation overflowed")
LIBRARIES = ("safetensors", "safetensors_rust", "pyarrow", "mlflow", "sqlalchemy")  # which write files
TORCH_WRITER = ("PytorchStreamWriter", "inline_container", "iostream error")  # in the messages of its errors
NO_SPACE = ("No space left on device", "Disk quota exceeded", "database or disk is full")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a device or the machine has no memory left."""
    raised_by_torch = isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or raised_by_torch


def is_full_disk(error: BaseException | None) -> bool:
    """Whether `error`, or the one that it was raised for, says that a disk is full. Libraries keep only the text."""
    if error is None:
        return False
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    texts = isinstance(error, OSError | RuntimeError | sqlite3.Error) or _of_library(error)
    told = texts and any(text in str(error) for text in NO_SPACE)
    return full or told or is_full_disk(error.__cause__ or error.__context__)


def _of_library(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in LIBRARIES


def disk_error(error: BaseException) -> str | None:
    """Why a file could not be written: no space, or no permission. None for any other error.

    torch and safetensors put the reason into their message, or raise a later error with the first one as its context.
    """
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
    for reason in reasons.values():
        if reason in text:
            return reason
    if any(writer in text for writer in TORCH_WRITER):
        return "the file could not be written (is the disk full?)"
    return None if error.__context__ is None else disk_error(error.__context__)


@contextlib.contextmanager
def out_of_memory_in_one_line(kind: type[RefineError], doing: str, advice: str) -> Iterator[None]:
    """For a block that computes: out of memory raises `kind`, "out of memory DOING: ADVICE"."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise kind(f"out of memory {doing}: {advice}") from None
