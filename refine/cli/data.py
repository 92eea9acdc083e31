"""`refine data`: fetch the raw text and compare it with the version in data.dvc."""

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
@click.option("--update", is_flag=True, help="Accept what the sources give as a new version; record it in data.dvc.")
@click.option("--replace", is_flag=True, help="Replace an altered data/ by the recorded version.")
def fetch(params: Path, overrides: tuple[str, ...], update: bool, replace: bool) -> None:
    """Fetch data/ from the sources in the settings.

    Text that is not the version in data.dvc is refused.
    """
    from refine import settings
    from refine.cli.progress_line import moving_line
    from refine.data.corpus.dvc import allow_without_git
    from refine.data.corpus.fetch import fetch_data

    chosen = settings.load(params, overrides).data
    with moving_line() as (show, say):
        done = fetch_data(chosen, update=update, replace=replace, report=say, report_progress=show)
    if done.recorded:
        click.echo(f"data/ is {done.md5}, recorded in data.dvc: commit that file")
    else:
        click.echo(f"data/ is {done.md5}, as data.dvc records" if done.splits else "data/ is up to date")
    if warning := allow_without_git():
        click.echo(warning)


@data.command()
def check() -> None:
    """Check that data/ is the version in data.dvc.

    If it is not, the differences are listed.
    """
    from refine.data.corpus import version

    expected = version.recorded()
    if expected is None:
        raise DataError("data.dvc is missing: run `refine data fetch`, which writes data/ and records its version")
    if differs := version.differences(version.of(version.DATA), expected):
        raise DataError(f"data/ is not what data.dvc records: {', '.join(differs)}")
    click.echo(f"data/ is {expected.md5}, as data.dvc records")


@data.command()
def accept() -> None:
    """Record data/ as it is now in data.dvc.

    For a data/ that you altered or copied from elsewhere.
    """
    from refine.data.corpus.fetch import accept_data

    click.echo(f"data/ is {accept_data()}, recorded in data.dvc: commit that file")


@data.command()
def push() -> None:
    """Send data/ to DVC's remote.

    Machines that cannot reach the sources can pull it from there.
    """
    from refine.data.corpus.dvc import push_data

    click.echo(f"pushed to {push_data(click.echo)}")


@data.command()
def pull() -> None:
    """Fetch the version in data.dvc from DVC's remote."""
    from refine.data.corpus.dvc import pull_data

    click.echo(f"pulled from {pull_data(click.echo)}")
