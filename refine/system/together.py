"""Commands that threads of one block run at once, and that end when the block is interrupted.

Only the main thread gets a signal (Ctrl-C, the SIGTERM of a cancelled run). The other threads wait for their commands;
these must end first, or the program would wait for them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar


class Together:
    """The commands of a block. Threads get it with their context (`contextvars.copy_context`)."""

    def __init__(self) -> None:
        self.interrupted = False
        self._ends: set[Callable[[], None]] = set()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def command(self, end: Callable[[], None]) -> Iterator[None]:
        """A command runs during this block, and `end` ends it.

        Raises KeyboardInterrupt: the whole was interrupted before the command began, or while it ran.
        """
        with self._lock:
            self._ends.add(end)
        if self.interrupted:
            end()
        try:
            yield
        finally:
            with self._lock:
                self._ends.discard(end)
            if self.interrupted:
                raise KeyboardInterrupt

    def interrupt(self) -> None:
        """End every command, and each that a thread still begins."""
        self.interrupted = True
        with self._lock:
            ends = list(self._ends)
        for end in ends:
            end()


CURRENT: ContextVar[Together | None] = ContextVar("together", default=None)


@contextlib.contextmanager
def together() -> Iterator[Together]:
    """Commands that threads start during this block (with `run_in_own_process`) end when an interrupt leaves it. An
    ordinary error lets them end by themselves."""
    group = Together()
    token = CURRENT.set(group)
    try:
        yield group
    except Exception:
        raise
    except BaseException:
        group.interrupt()
        raise
    finally:
        CURRENT.reset(token)
