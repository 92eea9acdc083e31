"""`refine compare`: registered versions side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from refine.cli import options
from refine.errors import ServiceError, nearest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from rich.table import Table

    from refine.reports.cells import Row
    from refine.reports.comparison import Comparison
    from refine.tracking.registry import Version

ALL = "all"


@click.command()
@click.option(
    "--model",
    "name",
    callback=options.model_name,
    help="Registered model (default: registry.model_name in the settings).",
)
@options.experiment(shown="every experiment")
@click.option(
    "--versions",
    "wanted",
    help="Numbers and aliases, as in 1,3,champion, or `all` (default: each arm's newest, and the champion).",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "markdown", "csv"]),
    default="table",
    show_default=True,
    help="Format of the output.",
)
@click.option("--picture", type=click.Path(path_type=Path), help="Also draw it: a .png, .svg or .pdf file.")
@options.settings()
def compare(
    name: str | None,
    experiment: str | None,
    wanted: str | None,
    form: str,
    picture: Path | None,
    params: Path,
    overrides: tuple[str, ...],
) -> None:
    """Print registered model versions side by side: scores with counts and 95 % intervals, and what differs."""
    from refine import settings
    from refine.reports import comparison
    from refine.tracking.connection import connect

    if name is None:
        name = settings.load(params, overrides).registry.model_name
    check_picture(picture)
    client = connect()
    chosen, left_out = choose(client, name, experiment, wanted)
    found = comparison.compare(chosen)
    if form == "markdown":
        click.echo(found.markdown())
    elif form == "csv":
        click.echo(found.csv(), nl=False)
    else:
        from refine.reports.differences import to_champion
        from refine.tracking.pages import comparison_page

        _show(name, found, to_champion(client, chosen), left_out)
        if page := comparison_page(client, chosen):
            click.echo(f"curves and settings in MLflow: {page}")
    if picture is not None:
        from refine.reports.pictures import draw_comparison

        click.echo(f"drawn: {draw_comparison(found, picture)}", err=form != "table")


def check_picture(path: Path | None) -> None:
    """Raise SettingError if the name's ending is that of no picture, or it cannot be written."""
    options.check_picture(path, "--picture")


def choose(client: MlflowClient, name: str, experiment: str | None, wanted: str | None) -> tuple[list[Version], int]:
    """The versions to show, oldest first, and how many older ones are left out.

    Raises ServiceError if the model, experiment, version or alias does not exist; the message lists those that do.
    """
    from refine.tracking.registry import version_of, versions

    if wanted and wanted != ALL:
        named = [version_of(client, name, one.strip()) for one in wanted.split(",") if one.strip()]
        return sorted({one.number: one for one in named}.values(), key=lambda one: one.number), 0
    known_versions = versions(client, name)
    if not known_versions:
        version_of(client, name, "1")  # raises the error that lists the models
    if experiment is not None:
        known = sorted({one.experiment for one in known_versions if one.experiment})
        known_versions = [one for one in known_versions if one.experiment == experiment]
        if not known_versions:
            raise ServiceError(
                f"no version of {name} comes from experiment {experiment!r}{nearest(experiment, known)}; "
                f"there are: {', '.join(known) or 'none'}"
            )
    shown = known_versions if wanted == ALL else newest(known_versions)
    return shown, len(known_versions) - len(shown)


def newest(versions: Sequence[Version]) -> list[Version]:
    """The newest version of each phase's arm, and the champion."""
    last = {(one.phase, one.arm): one.number for one in versions}
    return [one for one in versions if one.number == last[one.phase, one.arm] or one.is_champion]


def _show(name: str, found: Comparison, differences: Sequence[Row], left_out: int) -> None:
    from rich.console import Console

    from refine.reports.comparison import BOLD
    from refine.tracking.tags import CHAMPION_WHY

    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width to cut columns to
        console.width = 10_000
    marks = ("[bold]", "[/bold]") if console.is_terminal else BOLD
    table = _table(found, True, marks)
    if console.is_terminal and console.measure(table).minimum > console.width:
        table = _table(found, False, marks)
    console.print(f"[bold]{name}[/bold]")
    console.print(table)
    console.print("[dim]bold: the best of the row; in brackets the 95 % interval[/dim]")
    if differences:
        console.print("\n[bold]difference to the champion[/bold], sample by sample (* clear of zero)")
        console.print(_differences(found, differences))
    if left_out:
        console.print(f"[dim]{left_out} older versions are not shown: --versions all[/dim]")
    champion = next((one for one in found.versions if one.is_champion), None)
    if champion is not None:
        console.print(f"champion: version {champion.label}, {champion.tags.get(CHAMPION_WHY, '')}")


def _table(found: Comparison, intervals: bool, best: tuple[str, str]) -> Table:
    from rich import box
    from rich.table import Table

    head, *lines = found.table(intervals, best)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for n, title in enumerate(head):
        style = "green" if n >= 2 and found.versions[n - 2].is_champion else None
        table.add_column(title, justify="left" if n == 0 else "right", no_wrap=True, style=style)
    for n, line in enumerate(lines):
        table.add_row(*line, end_section=n == len(found.rows) - 1 and bool(found.differing))
    return table


def _differences(found: Comparison, differences: Sequence[Row]) -> Table:
    from rich import box
    from rich.table import Table

    from refine.reports.differences import texts

    others = [n for n, version in enumerate(found.versions) if not version.is_champion]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric", no_wrap=True)
    for n in others:
        table.add_column(found.headers()[n], justify="right", no_wrap=True)
    for row in differences:
        shown = texts(row)
        table.add_row(row.label, *(shown[n] for n in others))
    return table
