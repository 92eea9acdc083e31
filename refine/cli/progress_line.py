"""One changing line on a terminal during long work. It is not printed into files and logs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

Print = Callable[[str], None]


@contextmanager
def moving_line() -> Iterator[tuple[Print, Print]]:
    """Yields two functions: the first sets the text of the changing line, the second prints a line that stays."""
    from rich.console import Console

    with Console(stderr=True).status("") as status:

        def print_line(line: str) -> None:
            status.stop()
            click.echo(line)
            status.start()

        yield status.update, print_line
