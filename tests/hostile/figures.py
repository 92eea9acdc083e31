"""The figures of the hostile tests, by reader: `python -m tests.hostile.figures [MUTATIONS] [SEED]`."""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.hostile.contract import HALF, HANG, ONE_LINE, OUTCOMES, TRACEBACK, WORKED
from tests.hostile.readers import chosen, tried

COUNT, SEED = 40, 16
FAILURES = (TRACEBACK, HANG, HALF)


def table(rows: Iterable[tuple[str, list[tuple[int, str, str]]]]) -> str:
    """A Markdown table with a line for each reader."""
    head = f"| reader | tried | {' | '.join((WORKED, ONE_LINE, *FAILURES))} |"
    lines = [head, "|---|" + "---|" * (1 + len(OUTCOMES))]
    total: Counter[str] = Counter()
    for name, found in rows:
        counts = Counter(kind for _, kind, _ in found)
        total += counts
        lines.append(_line(name, counts))
    return "\n".join([*lines, _line("all", total)])


def _line(name: str, counts: Counter[str]) -> str:
    shown = (counts[kind] for kind in (WORKED, ONE_LINE, *FAILURES))
    return f"| {name} | {sum(counts.values())} | {' | '.join(map(str, shown))} |"


def main(count: int = COUNT, seed: int = SEED, only: str = "") -> None:
    """Print every failure, then the table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for reader in chosen(only):
            started = time.perf_counter()
            found = tried(reader, Path(folder) / "bad", count, seed)
            rows.append((reader.name, found))
            print(f"{reader.name}: {time.perf_counter() - started:.1f} s", file=sys.stderr)
            for number, kind, shown in found:
                if kind in FAILURES:
                    print(f"--- {reader.name}, mutation {number}: {kind}\n{shown}", file=sys.stderr)
    print(table(rows))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:4])
