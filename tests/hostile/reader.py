"""What a hostile test tries: a reader, a good sample, and the file to damage."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.hostile import mutations as bad

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Reader:
    """file: its place in a copy of the folder `good`. sample: the tree, columns or bytes that `write` damages.
    names: one of them, or the file's name, must be in a message. answered: whether the good sample can be read (no
    server listens at an address)."""

    name: str
    file: str
    sample: Callable[[], Any]
    write: bad.Write
    read: Callable[[Path], Any]
    good: Callable[[Path], Any] = lambda folder: None
    names: tuple[str, ...] = ()
    answered: bool = True

    def damage(self, folder: Path, chance: random.Random | None) -> Path:
        """Fill `folder` and damage the file (with None: leave it good). Returns the file."""
        self.good(folder)
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        if chance is not None:
            path.unlink(missing_ok=True)
            self.write(path, self.sample(), chance)
        elif not path.exists():
            self._write_good(path)
        return path

    def _write_good(self, path: Path) -> None:
        sample = self.sample()
        if self.write is bad.write_parquet:
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table(sample), path)
        elif self.write is bad.write_lines:
            path.write_bytes(b"".join(bad.as_json(line) + b"\n" for line in sample))
        else:
            path.write_bytes(sample if isinstance(sample, bytes) else bad.as_json(sample))


def put(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def sample_of(files: Callable[[], dict[str, bytes]], name: str) -> Callable[[], Any]:
    return lambda: json.loads(files()[name])


def yaml_of(path: Path) -> Callable[[], Any]:
    return lambda: yaml.safe_load(path.read_text(encoding="utf-8"))


def empty(folder: Path) -> Path:
    """`folder`, emptied."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """The variables of the environment, for a block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
