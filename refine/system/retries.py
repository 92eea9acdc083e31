"""Repeat a request while a server does not answer, with pauses that double up to a limit."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from refine.errors import reason

PATIENCE = 90.0  # without progress, before it gives up [s]
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 15.0  # between two tries [s]

T = TypeVar("T")
log = logging.getLogger(__name__)


def patiently(action: Callable[[], T], may_pass: Callable[[Exception], bool], what: str) -> T:
    """The result of `action`. Repeats it for PATIENCE while it raises an error for which `may_pass` is true.

    `what`: name of the server for the log. After PATIENCE raises the last error; any other error is raised at once.
    """
    waiting = Waiting(what)
    while True:
        try:
            return action()
        except Exception as error:
            if not may_pass(error):
                raise
            waiting.pause(error)


class Waiting:
    """Pauses between tries. Each is twice the last, up to LONGEST_PAUSE, until PATIENCE passes without progress."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.progressed()

    def progressed(self) -> None:
        """A try made progress: PATIENCE starts again."""
        self.since: float | None = None
        self.next = FIRST_PAUSE

    def pause(self, error: Exception) -> None:
        """Wait before the next try. Raises `error` if PATIENCE is over."""
        now = time.monotonic()
        self.since = now if self.since is None else self.since
        if now - self.since + self.next > PATIENCE:
            raise error
        log.warning("%s: %s: %s; trying again in %.1f s", self.what, type(error).__name__, reason(error), self.next)
        time.sleep(self.next * (0.75 + random.random() / 2))  # random, so that workers do not try all at once
        self.next = min(2 * self.next, LONGEST_PAUSE)
