"""SHA-256 of files. A process does not read a file again that has not changed since it read it."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

SETTLED = 2.0  # [s] a file that changed later than this before it was read may change again without another time
_known: dict[tuple[int, ...], str] = {}


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of the file's bytes, in hexadecimal digits. Raises OSError: it cannot be read.

    The second call for a file with the same place, size and times gives what the first one found.
    """
    with Path(path).open("rb") as file:
        found = os.fstat(file.fileno())
        changed = max(found.st_mtime, found.st_ctime)
        mark = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if mark in _known:
            return _known[mark]
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time() - changed > SETTLED:
            _known[mark] = digest
        return digest
