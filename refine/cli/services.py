"""`refine up`, `refine down`, `refine worker`: Prefect, MLflow and a worker on this machine."""

from __future__ import annotations

import sys

import click

from refine.cli import options
from refine.errors import ServiceError

PORT = click.IntRange(1, 65535)


@click.command()
@click.option("--prefect-port", type=PORT, default=4200, show_default=True, help="Port of Prefect's server and pages.")
@click.option("--mlflow-port", type=PORT, default=5000, show_default=True, help="Port of MLflow's server and pages.")
@options.pool("gpu")
@click.option(
    "--prefect-database",
    envvar="REFINE_PREFECT_DATABASE",
    show_envvar=True,
    show_default="SQLite",
    help="postgresql+asyncpg://...",
)
@click.option(
    "--mlflow-database",
    envvar="REFINE_MLFLOW_DATABASE",
    show_envvar=True,
    show_default="SQLite",
    help="postgresql+pg8000://...",
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="This machine's address for the servers to listen on."
)
@click.option(
    "--artifacts",
    envvar="REFINE_ARTIFACTS",
    show_envvar=True,
    show_default="$REFINE_HOME/mlartifacts",
    help="Folder or s3://... of the models.",
)
def up(**chosen: object) -> None:
    """Start Prefect's server, MLflow's server, a worker and a janitor, and wait until they answer.

    The janitor ends runs whose process has died.
    """
    from refine.services import up

    addresses = up.up(up.UpOptions(**chosen), click.echo)  # type: ignore[arg-type]
    click.echo(f"\nPrefect  {addresses['prefect']}\nMLflow   {addresses['mlflow']}")
    click.echo(f"worker   of pool {addresses.get('pool', chosen['pool'])}; `refine deploy` registers runs for it")
    click.echo("Prefect's page asks for a password: `refine status --secret` prints it")
    click.echo("`refine status` shows what runs, `refine down` stops it")


@click.command()
@options.pool("gpu")
def worker(pool: str) -> None:
    """Take runs from a work pool on this machine, in this checkout, until Ctrl-C.

    PREFECT_API_URL and MLFLOW_TRACKING_URI name the servers. `refine up` already starts a worker.
    """
    from refine.services.worker import serve

    serve(pool)


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask, even if runs are in progress.")
def down(yes: bool) -> None:
    """Stop exactly what `refine up` started.

    Runs in progress end: at a terminal, the command names them and asks first. `prefect flow-run retry`, after the next
    `refine up`, resumes them.
    """
    from refine.services import up

    runs = up.flow_runs_in_progress()
    for run in runs:
        click.echo(f"{run.name} ({run.state}): {'ends' if run.ends else 'loses its server'}")
    if runs and not yes and at_terminal() and not click.confirm("stop the services?"):
        raise ServiceError("nothing was stopped")
    click.echo("stopped" if up.down(click.echo) else "nothing runs")


def at_terminal() -> bool:
    """Whether a person can answer a question."""
    return sys.stdin.isatty()
