"""`refine doctor`: what is installed, what will be used, which servers answer, and how to correct what is broken."""

from __future__ import annotations

import sys

import click

MARKS = {"good": ("ok", "green"), "note": ("note", "yellow"), "broken": ("BROKEN", "red")}


@click.command()
def doctor() -> None:
    """Check the installation, the device and its kernels, $REFINE_HOME, the settings, the data and the servers.

    The exit code is 1 if something needed is broken.
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
    click.echo("\neverything needed works")
