"""`refine pretrain`: a small model from a settings file alone; how the models that come with the package were made."""

from __future__ import annotations

from pathlib import Path

import click

from refine.cli import options


@click.command()
@options.settings(params=None)
@options.output()
def pretrain(params: Path, output: Path, overrides: tuple[str, ...]) -> None:
    """Text, tokenizer and next-token training of a new model; started again, it resumes. The model, in bf16, goes to
    OUTPUT/model. The package's own settings files are refine/settings/recipes/*.yaml."""
    from refine import settings
    from refine.cli.train import become_processes
    from refine.phases import pretraining, run_folder
    from refine.system.processes import die_with_parent

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
