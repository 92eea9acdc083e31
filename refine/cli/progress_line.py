"""One moving line on a terminal while something long goes on; nothing of it where the output is a file or a log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click


@contextmanager
def moving_line() -> Iterator[tuple[Callable[[str], None], Callable[[str], None]]]:
    """Gives two functions: one says what the moving line shows, one prints a line that stays."""
    from rich.console import Console

    with Console(stderr=True).status("") as status:

        def stay(line: str) -> None:
            status.stop()
            click.echo(line)
            status.start()

        yield status.update, stay
