"""MLflow's SQLite file: a new one is made of hundreds of small steps, each of which would wait for the disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

PREFIX = "sqlite:///"


def file_of(uri: str) -> Path:
    """The file that a sqlite:/// address names."""
    return Path(unquote(uri.removeprefix(PREFIX)))


@contextlib.contextmanager
def quickly_made(uri: str) -> Iterator[None]:
    """While this lasts, a SQLite file that is not there yet is made without waiting for the disk at each of its tables;
    from its end on, every change is on the disk before it counts as made, as ever. Other databases are left alone."""
    if not uri.startswith(PREFIX) or file_of(uri).exists():
        yield
        return
    from sqlalchemy import Engine, event

    opened: list[Any] = []

    def hurry(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")
        opened.append(connection)

    event.listen(Engine, "connect", hurry)
    try:
        yield
    finally:
        event.remove(Engine, "connect", hurry)
        for connection in opened:
            with contextlib.suppress(Exception):  # it is closed already
                connection.execute("PRAGMA synchronous = FULL")
