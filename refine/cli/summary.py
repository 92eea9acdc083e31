"""`refine summary`: the last experiment's comparison, its files, and where to see more."""

from __future__ import annotations

import os
from pathlib import Path

import click

from refine import paths
from refine.errors import DataError, without_secrets


@click.command()
def summary() -> None:
    """Print the last experiment's comparison, the files it wrote, and how to open MLflow and Prefect."""
    results = paths.results()
    table = results / "comparison.md"
    if not table.is_file():
        raise DataError(f"{table}: no experiment has finished here yet; run `make run`, or `dvc repro`")
    click.echo()
    click.echo(table.read_text(encoding="utf-8").rstrip())
    click.echo("\n  **bold**: the best of the row; in brackets the 95 % interval\n")
    for title, line in [*_written(results), *_pages()]:
        click.echo(f"  {title:<12} {line}")
    click.echo()


def _written(results: Path) -> list[tuple[str, str]]:
    files = sorted(str(path) for path in results.iterdir() if path.is_file() and not path.name.startswith("."))
    return [("results", "  ".join(files)), ("models", f"{paths.runs()}{os.sep}*{os.sep}model")]


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
