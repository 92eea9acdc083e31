"""`refine pretrain`: makes a small model from a settings file alone, as the package's own models were made."""

from __future__ import annotations

from pathlib import Path

import click

from refine.cli import options


@click.command()
@options.settings(params=None)
@options.output()
def pretrain(params: Path | None, output: Path, overrides: tuple[str, ...]) -> None:
    """Make text, tokenizer and a new model by next-token training. Started again, it resumes. The model goes to
    OUTPUT/model, in bf16. The settings files of the shipped models are refine/settings/recipes/*.yaml."""
    from refine import settings
    from refine.cli.train import become_processes
    from refine.phases import pretraining, run_folder
    from refine.system.processes import die_with_parent

    if params is None:
        raise click.UsageError("Missing option '--params'.")
    die_with_parent()
    values = settings.load_recipe(params, overrides)
    plan = pretraining.plan(values, output, lambda line: click.echo(line, err=True))
    run_folder.check(output / "training", plan.identity)
    become_processes(values)
    record = pretraining.pretrain(values, plan, output)
    click.echo(
        f"{output / 'model'}: {record['parameters']:,} parameters, {record['tokens']:,} tokens in "
        f"{record['seconds'] / 60:.1f} min, validation loss {record['metrics']['val/loss']:.3f}"
    )
