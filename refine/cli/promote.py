"""`refine promote`: move the alias `champion`, by the rule in params.yaml."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from refine.cli import options


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
