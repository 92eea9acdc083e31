"""Errors a user can cause. The command line prints their message as one line and exits with 1, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RefineError(Exception):
    """Something the user can mend. The message names what is at fault, what was expected and what to do."""


class SettingError(RefineError):
    """A setting that is unknown, out of range, or at odds with another one."""


class DataError(RefineError):
    """Raw or prepared data that is missing, altered, or not of the expected form."""


class ModelError(RefineError):
    """A checkpoint, memory or token sequence that does not fit the model."""


class TrainingError(RefineError):
    """Training that cannot go on: a non-finite loss, a checkpoint of other settings, a training process that failed."""


class ServiceError(RefineError):
    """A server (MLflow, Prefect, S3) that does not answer, or answers with a refusal."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the known name closest to `name`, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


def reason(error: BaseException | str, characters: int = 200) -> str:
    """The message of an error on one line, cut to `characters`; its class's name where it has no message."""
    return " ".join(str(error).split())[:characters] or type(error).__name__
