"""`refine summary`: the last experiment's arms side by side, its files, and where to see more."""

from __future__ import annotations

import os
from pathlib import Path

import click

from refine import paths
from refine.errors import without_secrets


@click.command()
@click.option("--all", "every", is_flag=True, help="Print every score, not only the headline scores.")
def summary(every: bool) -> None:
    """Print the last experiment's arms side by side, the files it wrote, and how to open MLflow and Prefect."""
    from refine.reports.experiment_files import headline_text

    results = paths.results()
    text = headline_text(results)
    click.echo()
    if every:
        _show_all(results)
    else:
        click.echo(text)
    click.echo()
    for title, line in [*_written(results), *_pages()]:
        click.echo(f"  {title:<8} {line}")
    click.echo()


def _show_all(results: Path) -> None:
    from rich.console import Console

    from refine.reports.arms_down import show, what_is_marked
    from refine.reports.experiment_files import VALUES
    from refine.reports.long_csv import read

    table = read(results / VALUES)
    show(Console(), table, what_is_marked(table))


def _written(results: Path) -> list[tuple[str, str]]:
    files = sorted(path.name for path in results.iterdir() if path.is_file() and not path.name.startswith("."))
    return [
        ("results", f"{_short(results)}{os.sep}: {', '.join(files)}"),
        ("models", f"{_short(paths.runs())}{os.sep}*{os.sep}model"),
    ]


def _short(path: Path) -> str:
    """Seen from the working folder, if it lies in there."""
    path, here = path.absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _pages() -> list[tuple[str, str]]:
    from refine.services.prefect_api import VARIABLE, running_server
    from refine.tracking.connection import tracking_uri

    mlflow, prefect = tracking_uri(), os.environ.get(VARIABLE) or running_server()
    start = ".venv/bin/refine up   then http://127.0.0.1:"
    return [
        ("compare", ".venv/bin/refine compare"),
        ("MLflow", without_secrets(mlflow) if mlflow.startswith("http") else f"{start}5000"),
        ("Prefect", without_secrets(prefect).removesuffix("/api") if prefect else f"{start}4200"),
    ]
