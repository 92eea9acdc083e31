"""A machine that has no memory or no disk space left: recognised, and told in one line."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator

from refine.errors import RefineError

NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Storage size calculation overflowed")
LIBRARIES = ("safetensors", "safetensors_rust", "pyarrow", "mlflow", "sqlalchemy")  # which write files
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


@contextlib.contextmanager
def memory_told(kind: type[RefineError], doing: str, advice: str) -> Iterator[None]:
    """For a block that computes: out of memory raises `kind`, "out of memory DOING: ADVICE"."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise kind(f"out of memory {doing}: {advice}") from None
