"""`refine promote`: move the alias `champion`, by the rule in params.yaml."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from refine.cli import options
from refine.errors import RefineError

if TYPE_CHECKING:
    from refine.tracking.champion import Verdict


@click.command()
@click.argument("version", metavar="VERSION")
@options.settings()
@click.option("--dry-run", is_flag=True, help="Only say what would happen.")
def promote(version: str, params: Path, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Make VERSION (a number or alias) champion if the rule under `registry` in the settings accepts it.

    The version records the reasons, also of a refusal. The exit code of a refusal is 1.
    """
    from refine import settings
    from refine.tracking.champion import promote as decide
    from refine.tracking.connection import connect

    rule = settings.load(params, overrides).registry
    verdict = decide(connect(), rule, version, dry_run)
    would = "would be " if dry_run else ""
    outcome = "champion" if verdict.accepted else "refused"
    click.echo(f"{verdict.challenger.name} version {verdict.challenger.label}: {would}{outcome}")
    for reason in verdict.reasons:
        click.echo(f"  {reason}")
    if not verdict.accepted:
        sys.exit(1)
    if not dry_run and (verdict.champion is None or verdict.champion.number != verdict.challenger.number):
        tell_prefect(verdict)


def tell_prefect(verdict: Verdict) -> None:
    """Send the event of a new champion to the Prefect server in use, if there is one: its automations may notify."""
    from refine.services import prefect_api

    try:
        api = prefect_api.chosen()
        if api is None:
            return
        prefect_api.check_answers(api)
    except RefineError as error:
        click.echo(f"nobody is notified: {error}", err=True)
        return
    with prefect_api.using(api):
        from refine.services import notifications

        notifications.champion_changed(verdict.champion, verdict.challenger, "; ".join(verdict.reasons))
        notifications.send_events()
