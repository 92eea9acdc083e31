"""`refine data`: bring the raw text and hold it against data.dvc."""

from __future__ import annotations

from pathlib import Path

import click

from refine.cli import options
from refine.errors import DataError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def data() -> None:
    """Fetch the raw text into data/ and check it against data.dvc."""


@data.command()
@options.settings()
@click.option("--update", is_flag=True, help="make what the sources give the new version, in data.dvc too")
@click.option("--replace", is_flag=True, help="put the recorded text in the place of a data/ that was altered")
def fetch(params: Path, overrides: tuple[str, ...], update: bool, replace: bool) -> None:
    """Write data/ from the sources that the settings name; refuse what is not the version that data.dvc records."""
    from refine import settings
    from refine.cli.progress_line import moving_line
    from refine.data.corpus import dvc
    from refine.data.corpus.fetch import fetch as fetch_data

    chosen = settings.load(params, overrides).data
    with moving_line() as (going_on, said):
        done = fetch_data(chosen, update=update, replace=replace, said=said, going_on=going_on)
    if done.recorded:
        click.echo(f"data/ is {done.md5}, recorded in data.dvc: commit that file")
    else:
        click.echo(f"data/ is {done.md5}, as data.dvc records" if done.splits else "data/ is up to date")
    if told := dvc.tell_dvc():
        click.echo(told)


@data.command()
def check() -> None:
    """Say whether data/ is the version that data.dvc records, and what differs if it is not."""
    from refine.data.corpus import version

    expected = version.recorded()
    if expected is None:
        raise DataError("data.dvc is missing: run `refine data fetch`, which writes data/ and records its version")
    if differs := version.differences(version.of(version.DATA), expected):
        raise DataError(f"data/ is not what data.dvc records: {', '.join(differs)}")
    click.echo(f"data/ is {expected.md5}, as data.dvc records")


@data.command()
def accept() -> None:
    """Keep data/ as it is now, altered or brought from elsewhere, as a new version in data.dvc."""
    from refine.data.corpus.fetch import accept as accept_data

    click.echo(f"data/ is {accept_data()}, recorded in data.dvc: commit that file")


@data.command()
def push() -> None:
    """Send data/ to DVC's remote, for machines that cannot fetch it from the sources."""
    from refine.data.corpus import dvc

    click.echo(f"pushed to {dvc.push(click.echo)}")


@data.command()
def pull() -> None:
    """Bring data/ from DVC's remote, as data.dvc records it."""
    from refine.data.corpus import dvc

    click.echo(f"pulled from {dvc.pull(click.echo)}")
