"""`refine report`: an experiment's evaluations as the paper's tables, from MLflow or from a folder."""

from __future__ import annotations

from pathlib import Path

import click

from refine import paths
from refine.cli import options


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
    """Lay an experiment's results out as the paper's tables: Markdown, CSV and a figure.

    A row for each arm of a phase and a column for each task, with 95 % intervals, the best in bold, and each arm's
    difference to the SFT arm of its phase, sample by sample.
    """
    from refine import settings
    from refine.reports.evaluations import find_evaluations, find_in_folder
    from refine.reports.paper_files import as_markdown, write_report
    from refine.reports.paper_tables import tables
    from refine.tracking.connection import connect

    if folder is not None and experiment is not None:
        raise click.UsageError("--folder and --experiment: give one of them")
    options.check_folder(output or paths.results() / "report", "--output")
    if folder is not None:
        made, title = tables(find_in_folder(folder)), f"Experiment {folder.name}"
    else:
        experiment = experiment or settings.load(params, overrides).registry.model_name
        made, title = tables(find_evaluations(connect(), experiment)), f"Experiment {experiment}"
    files = write_report(made, output or paths.results() / "report", title)
    click.echo(as_markdown(made, title))
    click.echo(f"written: {', '.join(map(str, files))}")
