"""`refine up`, `refine down`, `refine status`: Prefect, MLflow and a worker on this machine."""

from __future__ import annotations

from datetime import timedelta

import click

PORT = click.IntRange(1, 65535)


@click.command()
@click.option("--prefect-port", type=PORT, default=4200, show_default=True, help="Port of Prefect's server and pages.")
@click.option("--mlflow-port", type=PORT, default=5000, show_default=True, help="Port of MLflow's server and pages.")
@click.option("--pool", default="gpu", show_default=True, help="Work pool that the worker takes runs from.")
@click.option(
    "--prefect-database", envvar="REFINE_PREFECT_DATABASE", help="postgresql+asyncpg://... (default: SQLite)."
)
@click.option("--mlflow-database", envvar="REFINE_MLFLOW_DATABASE", help="postgresql+pg8000://... (default: SQLite).")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address of this machine that the servers listen on."
)
@click.option("--artifacts", envvar="REFINE_ARTIFACTS", help="Folder or s3://... of models (default: $REFINE_HOME).")
def up(**options: object) -> None:
    """Start Prefect's server, MLflow's server, a worker and a janitor, and wait until they answer."""
    from refine.services import up

    addresses = up.up(up.Wanted(**options), click.echo)  # type: ignore[arg-type]
    click.echo(f"\nPrefect  {addresses['prefect']}\nMLflow   {addresses['mlflow']}")
    click.echo(f"worker   of pool {addresses.get('pool', options['pool'])}; `refine deploy` gives it something to do")
    click.echo("`refine status` shows what runs, `refine down` ends it")


@click.command()
@click.option("--pool", default="gpu", show_default=True, help="Work pool (of processes) to take runs from.")
def worker(pool: str) -> None:
    """Take runs from a work pool on this machine, in this checkout, until Ctrl-C.

    PREFECT_API_URL and MLFLOW_TRACKING_URI name the servers. `refine up` has a worker of its own.
    """
    from refine.services.worker import serve

    serve(pool)


@click.command()
def down() -> None:
    """Stop exactly what `refine up` started."""
    from refine.services import up

    click.echo("stopped" if up.down() else "nothing runs")


@click.command()
def status() -> None:
    """Show the services, and the runs that go on."""
    from refine.services import up

    addresses = up.state()
    programs = up.programs()
    if not programs:
        click.echo("the services do not run; `refine up` starts them")
    for program in programs:
        since = f"for {timedelta(seconds=round(program.seconds))}" if program.pid else ""
        where = addresses.get(program.name, f"pool {addresses.get('pool')}" if program.name == "worker" else "")
        click.echo(f"{program.name:<8} {program.state:<9} {program.pid or '':<8} {since:<12} {where}")
    runs = _running()
    click.echo("\nno run goes on" if not runs else "\nruns that go on:")
    for line in runs:
        click.echo(f"  {line}")


def _running() -> list[str]:
    """A line for each experiment and stage that is RUNNING in MLflow; the dead are ended first."""
    from refine.tracking.connection import connect
    from refine.tracking.run import end_dead_runs

    client = connect()
    end_dead_runs(client)
    experiments = {one.experiment_id: one.name for one in client.search_experiments()}
    found = client.search_runs(list(experiments), "attributes.status = 'RUNNING'", max_results=200)
    return [f"{experiments[run.info.experiment_id]}: {run.info.run_name}  (MLflow {run.info.run_id})" for run in found]
