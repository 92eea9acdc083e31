"""Errors that a user can cause. The command line prints one as a single line, without a traceback, and exits with 1."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RefineError(Exception):
    """An error that the user can correct. The message names what is wrong, what was expected and what to do."""


class SettingError(RefineError):
    """A setting that is unknown, out of range, or in conflict with another one."""


class DataError(RefineError):
    """Raw or prepared data that is missing, altered, or malformed."""


class ModelError(RefineError):
    """A checkpoint, memory or token sequence that does not fit the model."""


class TrainingError(RefineError):
    """Training that cannot continue: a non-finite loss, a checkpoint of other settings, a failed training process."""


class ServiceError(RefineError):
    """A server (MLflow, Prefect, S3) that does not answer, or refuses."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the known name closest to `name`, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


def reason(error: BaseException | str, characters: int = 200) -> str:
    """The message of an error on one line, cut to `characters`. An error without a message gives its class's name."""
    return " ".join(str(error).split())[:characters] or type(error).__name__
