"""Asking a server again while it is away: pauses that double, up to an end."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from refine.errors import reason

PATIENCE = 90.0  # without progress before giving up [s]
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 15.0  # between two tries [s]

T = TypeVar("T")
log = logging.getLogger(__name__)


def patiently(action: Callable[[], T], may_pass: Callable[[Exception], bool], what: str) -> T:
    """The result of `action`. While it raises an error that `may_pass` says may pass, it is tried again, for PATIENCE.

    `what` names in the log what is waited for. Raises the last error after that, and any other error at once.
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
    """Pauses between tries, doubled each time up to LONGEST_PAUSE, until PATIENCE is over without progress."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.progressed()

    def progressed(self) -> None:
        """Something came: patience starts anew."""
        self.since: float | None = None
        self.next = FIRST_PAUSE

    def pause(self, error: Exception) -> None:
        """Wait before the next try. Raises `error` when patience is over."""
        now = time.monotonic()
        self.since = now if self.since is None else self.since
        if now - self.since + self.next > PATIENCE:
            raise error
        told = f"{type(error).__name__}: {reason(error)}"
        log.warning("%s: %s; trying again in %.1f s", self.what, told, self.next)
        time.sleep(self.next * (0.75 + random.random() / 2))  # not all workers at once
        self.next = min(2 * self.next, LONGEST_PAUSE)
