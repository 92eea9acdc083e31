"""`refine doctor`: what is installed, what will be used, what answers, and what to do about the rest."""

from __future__ import annotations

import sys

import click

MARKS = {"good": ("ok", "green"), "note": ("note", "yellow"), "broken": ("BROKEN", "red")}


@click.command()
def doctor() -> None:
    """Say what is installed, which device and kernels are used, which servers answer and whether data is whole.

    Exit code 1 where something that is needed is broken.
    """
    from refine.services.diagnosis import examine

    findings = examine()
    for finding in findings:
        mark, colour = MARKS[finding.status]
        click.echo(f"{click.style(f'{mark:<7}', fg=colour)} {finding.topic:<9} {finding.found}")
        if finding.advice:
            click.echo(f"{'':<17} {click.style('→', fg=colour)} {finding.advice}")
    broken = [finding.topic for finding in findings if finding.status == "broken"]
    if broken:
        click.echo(f"\n{len(broken)} broken: {', '.join(broken)}")
        sys.exit(1)
    click.echo("\nall that is needed works")
