"""The contract of everything that reads: on a bad input it works, or raises a RefineError of one line that names the
input. It raises nothing else, ends within LIMIT seconds, and writes nothing half.
"""

from __future__ import annotations

import contextlib
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from refine.errors import RefineError

LIMIT = 20.0  # [s]
WORKED, ONE_LINE, TRACEBACK, HANG, HALF = "worked", "one line", "traceback", "hang", "half-written"
OUTCOMES = (WORKED, ONE_LINE, TRACEBACK, HANG, HALF)


class Hang(BaseException):
    """Raised in a call that takes longer than LIMIT. No `except Exception` catches it."""


def outcome(call: Callable[[], Any], names: tuple[str, ...], folder: Path) -> tuple[str, str]:
    """(one of OUTCOMES, what to show of it) of `call`. A message must hold one of `names`. `folder`: searched for
    unfinished files."""
    try:
        with time_limit(LIMIT):
            call()
    except RefineError as error:
        kind, shown = _judged(str(error), names)
    except Hang:
        return HANG, f"longer than {LIMIT:.0f} s"
    except BaseException as error:
        return TRACEBACK, "".join(traceback.format_exception(error)[-4:])
    else:
        kind, shown = WORKED, ""
    left = [str(path) for path in folder.rglob(".*.unfinished")]
    return (HALF, ", ".join(left)) if left else (kind, shown)


def _judged(message: str, names: tuple[str, ...]) -> tuple[str, str]:
    if "\n" in message or not message.strip():
        return TRACEBACK, f"not one line: {message!r}"
    if len(message) > 2000:
        return TRACEBACK, f"{len(message)} characters: {message[:200]!r}"
    if not any(name in message for name in names):
        return TRACEBACK, f"names none of {names}: {message!r}"
    return ONE_LINE, message


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise Hang in the block after `seconds`. The timer that was set before goes on afterwards."""

    def ring(number: int, frame: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, before)
