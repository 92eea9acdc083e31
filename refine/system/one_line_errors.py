"""A user's error ends a command with one line and exit code 1, never with a traceback."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import click

from refine.errors import RefineError, without_secrets


@contextlib.contextmanager
def one_line_errors(before: Callable[[bool], None] = lambda in_one_line: None) -> Iterator[None]:
    """Wraps the body of a command. A RefineError is printed to stderr as `error: ...`, and the process exits with 1.

    `before` is called first, for every error, with whether the error ends in one line: of several training processes
    only one prints (`refine.training.torchrun`).
    """
    try:
        yield
    except RefineError as error:
        before(True)
        click.echo(f"error: {without_secrets(str(error))}", err=True)
        sys.exit(1)
    except Exception:
        before(False)
        raise
