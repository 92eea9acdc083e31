"""`refine report`: an experiment's evaluations as the paper's tables, from MLflow or from a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from refine import paths
from refine.cli import options

if TYPE_CHECKING:
    from refine.evaluation.record import Evaluated


@click.command()
@options.experiment(shown="registry.model_name in the settings")
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Read FOLDER/ARM/SEED/evaluation.json instead of MLflow's runs."
)
@options.output(shown="results/report")
@options.settings()
def report(
    experiment: str | None, folder: Path | None, output: Path | None, params: Path, overrides: tuple[str, ...]
) -> None:
    """Lay an experiment's results out as the paper's tables (Markdown, CSV, a figure); print the headline scores.

    A row for each arm of a phase and a column for each task, with 95 % intervals, the best in bold, and each arm's
    difference to the SFT arm of its phase (at test time: to the model as it is), sample by sample.
    """
    from refine import settings
    from refine.reports.evaluations import find_evaluations, find_in_folder
    from refine.reports.paper_files import write_report
    from refine.reports.paper_tables import tables
    from refine.tracking.connection import connect

    if folder is not None and experiment is not None:
        raise click.UsageError("--folder and --experiment: give one of them")
    options.check_folder(output or paths.results() / "report", "--output")
    if folder is not None:
        found, title = find_in_folder(folder), f"Experiment {folder.name}"
    else:
        experiment = experiment or settings.load(params, overrides).registry.model_name
        found, title = find_evaluations(connect(), experiment), f"Experiment {experiment}"
    files = write_report(tables(found), output or paths.results() / "report", title)
    _digest(found, title)
    click.echo(f"Every table, loss by position, each difference: {', '.join(map(str, files))}")


def _digest(found: Sequence[Evaluated], title: str) -> None:
    """Print the headline scores of the arms."""
    from rich.console import Console

    from refine.reports.arms import of_evaluations
    from refine.reports.arms_down import show, what_is_marked
    from refine.reports.headline import headline

    console = Console()
    console.print(title, style="bold", markup=False, highlight=False)
    table = headline(of_evaluations(found))
    show(console, table, what_is_marked(table))
