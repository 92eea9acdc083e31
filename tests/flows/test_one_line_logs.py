"""A user's mistake is one line in a run's log and state; errors of the program keep their stack trace."""

from __future__ import annotations

import logging
import sys

import pytest

from flows import one_line_logs
from refine.errors import SettingError
from refine.system.processes import ProcessFailed

USERS = [SettingError("training.mid: no such thing"), ProcessFailed("train", 1, ["error: no such thing"])]
OTHERS = [ValueError("a fault of ours"), ProcessFailed("train", -9, ["killed"])]


def recorded(error: Exception) -> str:
    """What a handler writes of a record with the exception `error`, as Prefect logs it."""
    try:
        raise error
    except Exception:
        record = logging.LogRecord("x", logging.ERROR, "", 1, "Encountered exception: %r", (error,), sys.exc_info())
    assert one_line_logs.shorten(record)
    return logging.Formatter().format(record)


@pytest.mark.parametrize("error", USERS)
def test_a_users_mistake_is_its_message(error):
    assert recorded(error) == str(error)


@pytest.mark.parametrize("error", OTHERS)
def test_a_fault_of_the_program_keeps_its_stack_trace(error):
    written = recorded(error)
    assert written.startswith("Encountered exception: ") and "Traceback" in written


def test_prefects_loggers_of_runs_use_it_once():
    one_line_logs.install()
    for name in one_line_logs.LOGGERS:
        assert logging.getLogger(name).filters.count(one_line_logs.shorten) == 1
