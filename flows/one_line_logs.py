"""A user's mistake is one line in a run's log. Prefect adds the stack trace of every exception, which tells a user
nothing; errors of the program keep theirs."""

from __future__ import annotations

import logging

from refine.errors import RefineError
from refine.system.processes import ProcessFailed

LOGGERS = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")


def users_error(record: logging.LogRecord) -> RefineError | None:
    """The error that a user can correct, if `record` tells of one."""
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, RefineError) or (isinstance(error, ProcessFailed) and not error.user_error):
        return None
    return error


def shorten(record: logging.LogRecord) -> bool:
    """A filter of loggers: takes the stack trace of a user's mistake away, and Prefect's words around it."""
    if (error := users_error(record)) is not None:
        record.msg, record.args, record.exc_info, record.exc_text = str(error), (), None, None
    return True


def install() -> None:
    """Make Prefect's loggers of runs use `shorten`. Calling it again changes nothing."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(shorten)
