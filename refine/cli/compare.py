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
    from rich.console import Console
    from rich.table import Table

    from refine.reports.arms import Arm
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
@click.option("--all", "every", is_flag=True, help="Print every score, not only the headline scores.")
@click.option("--picture", type=click.Path(path_type=Path), help="Also draw it: a .png, .svg or .pdf file.")
@options.settings()
def compare(
    name: str | None,
    experiment: str | None,
    wanted: str | None,
    form: str,
    every: bool,
    picture: Path | None,
    params: Path,
    overrides: tuple[str, ...],
) -> None:
    """Print registered model versions side by side: arms down, headline scores across, with 95 % intervals.

    A star marks what differs clearly, sample by sample, from the arm `sft` of the phase among the shown versions.
    Markdown and CSV always have every score.
    """
    from refine import settings
    from refine.reports import comparison
    from refine.reports.arms import of_versions
    from refine.reports.arms_picture import draw_arms
    from refine.reports.experiment_files import everything
    from refine.reports.headline import headline
    from refine.reports.long_csv import as_csv
    from refine.tracking.connection import connect

    if name is None:
        name = settings.load(params, overrides).registry.model_name
    check_picture(picture)
    client = connect()
    chosen, left_out = choose(client, name, experiment, wanted)
    found = comparison.compare(chosen)
    if form == "markdown":
        click.echo(found.markdown())
    rows = of_versions(client, found, numbered=True) if form != "markdown" or picture else []
    if form == "csv":
        click.echo(as_csv(everything(rows)), nl=False)
    elif form == "table":
        _print(client, name, found, rows, every, left_out)
    if picture is not None:
        click.echo(f"drawn: {draw_arms(headline(rows), picture)}", err=form != "table")


def _print(client: MlflowClient, name: str, found: Comparison, arms: Sequence[Arm], every: bool, left_out: int) -> None:
    from rich.console import Console

    from refine.reports.differences import to_champion
    from refine.tracking.pages import comparison_page
    from refine.tracking.tags import CHAMPION_WHY

    console = Console()
    _show(console, name, found, arms, every)
    if every and (differences := to_champion(client, found.versions)):
        _show_champion(console, arms, differences)
    champion = next((one for one in found.versions if one.is_champion), None)
    if champion is not None:
        line = f"champion: version {champion.label}, {champion.tags.get(CHAMPION_WHY, '')}".rstrip(", ")
        console.print(line, markup=False, highlight=False)
    hints = [] if every else ["every score and what differs: --all"]
    hints += [f"{left_out} older versions are not shown: --versions all"] if left_out else []
    for line in hints:
        console.print(line, style="dim", markup=False, highlight=False)
    if page := comparison_page(client, found.versions):
        click.echo(f"curves and settings in MLflow: {page}")


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


def _show(console: Console, name: str, found: Comparison, arms: Sequence[Arm], every: bool) -> None:
    """Print the arms' table: the headline scores, or every score and what differs between the versions."""
    from refine.reports.arms_down import show, what_is_marked
    from refine.reports.experiment_files import everything
    from refine.reports.headline import headline

    console.print(name, style="bold", markup=False, highlight=False)
    table = everything(arms) if every else headline(arms)
    show(console, table, what_is_marked(table))
    if every and found.differing:
        console.print("\n[bold]what differs[/bold]")
        console.print(_differing(found))


def _show_champion(console: Console, arms: Sequence[Arm], differences: Sequence[Row]) -> None:
    """Print the differences to the champion, one metric a column."""
    from refine.reports.arms import differences_table
    from refine.reports.arms_down import show

    console.print("\n[bold]difference to the champion[/bold], sample by sample")
    show(console, differences_table(arms, differences), "*: clear of zero.")


def _differing(found: Comparison) -> Table:
    """A line for each value of a setting, with the versions that have it."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table("setting", "value", "versions", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name, values in found.differing:
        for n, value in enumerate(dict.fromkeys(values)):
            numbers = [str(one.number) for one, own in zip(found.versions, values, strict=True) if own == value]
            table.add_row("" if n else escape(name), escape(value), ", ".join(numbers))
    return table
