"""All readers that the hostile tests try."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

from refine.errors import RefineError
from tests.hostile.address_readers import ADDRESSES
from tests.hostile.contract import outcome
from tests.hostile.data_readers import DATA
from tests.hostile.model_readers import MODELS
from tests.hostile.reader import Reader, empty
from tests.hostile.run_readers import RUNS
from tests.hostile.settings_readers import SETTINGS

READERS = (*SETTINGS, *MODELS, *RUNS, *DATA, *ADDRESSES)
"""In the order of the table of figures."""

if len({reader.name for reader in READERS}) < len(READERS):
    raise ValueError("two readers have one name: they would get the same mutations")


def chosen(part: str) -> tuple[Reader, ...]:
    """The readers whose names hold `part`."""
    return tuple(reader for reader in READERS if part in reader.name)


def tried(reader: Reader, folder: Path, count: int, seed: int) -> list[tuple[int, str, str]]:
    """(mutation, outcome, what to show) of `count` mutations of the reader's sample."""
    with contextlib.suppress(RefineError):
        reader.read(reader.damage(empty(folder), None))  # imports what it needs, which takes time of its own
    found = []
    for number in range(count):
        path = reader.damage(empty(folder), random.Random(f"{seed}/{reader.name}/{number}"))
        kind, shown = outcome(lambda path=path: reader.read(path), (path.name, *reader.names), folder)
        found.append((number, kind, shown))
    return found
