"""Which files of a folder, or of a pattern, are data.

Names that begin with `.` or `_` are not: macOS writes `._NAME`, Spark `_SUCCESS` and `_metadata`, a Delta table
`_delta_log/`. An empty object that stands for a folder in S3 is not data either.
"""

from __future__ import annotations

import glob
from typing import Any

from refine.errors import DataError

WILDCARDS = "*?["


def split_pattern(file_system: Any, path: str) -> tuple[str, str]:
    """(start of `path` that is taken as it is, pattern below it or ""). A folder or file that exists is taken as it is,
    even if there is a `[`, `*` or `?` in its name."""
    parts = path.split("/")
    for number, part in enumerate(parts):
        wild = any(sign in part for sign in WILDCARDS)
        if wild and not file_system.exists("/".join(parts[: number + 1])):
            return "/".join(parts[:number]), "/".join(parts[number:])
    return path.rstrip("/"), ""


def data_files(file_system: Any, start: str, pattern: str, ending: str | tuple[str, ...]) -> list[str]:
    """The files with this ending below `start` that are data and match `pattern` (all of them if it is ""), sorted. If
    `start` is a file, only this file. Raises DataError for an empty file."""
    found = _listed(file_system, start, pattern)
    chosen = {name: info for name, info in found.items() if name == start or _is_data(name, start, pattern, ending)}
    empty = [name for name, info in chosen.items() if info["size"] == 0]
    folders = {name for name in empty if any(other.startswith(f"{name}/") for other in found)}
    for name in empty:
        if name not in folders:
            raise DataError(f"{name}: an empty file (0 bytes): remove it, or fetch it again")
    return sorted(chosen.keys() - folders)


def _listed(file_system: Any, start: str, pattern: str) -> dict[str, dict[str, Any]]:
    """name -> what the file system knows of it, of all files that match or are in a folder that matches."""
    if not pattern:
        return dict(file_system.find(start, detail=True))
    listed: dict[str, dict[str, Any]] = {}
    for name, info in file_system.glob(f"{glob.escape(start)}/{pattern}", detail=True).items():
        listed |= file_system.find(name, detail=True) if info["type"] == "directory" else {name: info}
    return listed


def _is_data(name: str, start: str, pattern: str, ending: str | tuple[str, ...]) -> bool:
    """Whether a listed name is data. A pattern that names `.` or `_` at the start of a part means such names."""
    meant = {part[0] for part in pattern.split("/") if part}
    parts = name.removeprefix(start).strip("/").split("/")
    return name.endswith(ending) and not any(part[:1] in (".", "_") and part[0] not in meant for part in parts)
