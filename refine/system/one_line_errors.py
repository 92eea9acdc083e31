"""A user's error ends a command with one line and exit code 1, never with a traceback."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Callable, Iterator

import click

from refine.errors import RefineError, reason, without_secrets
from refine.system.exhausted import is_full_disk, is_out_of_memory

# A name is too long, has a file in the place of a folder, a folder in the place of a file, or links in a circle.
NO_PLACE = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)


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
        _print(str(error))
        sys.exit(1)
    except Exception as error:
        if (told := _exhausted(error)) is None:
            before(False)
            raise
        before(True)
        _print(told)
        sys.exit(1)


def _exhausted(error: Exception) -> str | None:
    """One line about a full disk, exhausted memory or a name that can be no file's, which no verb told of itself; None
    for any other error."""
    if is_full_disk(error):
        return f"the disk is full ({reason(error)}): free space there and run the command again"
    if isinstance(error, OSError) and error.errno in NO_PLACE and error.filename is not None:
        return f"{reason(repr(error.filename), 120)}: {error.strerror}: name another file or folder"
    return f"out of memory ({reason(error)})" if is_out_of_memory(error) else None


def _print(message: str) -> None:
    """Print `error: MESSAGE` on one line. Names of files may hold line breaks, and halves of characters."""
    click.echo(
        f"error: {' '.join(without_secrets(message).splitlines())}".encode("utf-8", "replace").decode(), err=True
    )
