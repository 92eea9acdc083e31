"""`refine up`, `refine down`, `refine status`: Prefect, MLflow and a worker on this machine."""

from __future__ import annotations

import click

from refine.cli import options

PORT = click.IntRange(1, 65535)


@click.command()
@click.option("--prefect-port", type=PORT, default=4200, show_default=True, help="Port of Prefect's server and pages.")
@click.option("--mlflow-port", type=PORT, default=5000, show_default=True, help="Port of MLflow's server and pages.")
@options.pool("gpu")
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

    addresses = up.up(up.UpOptions(**options), click.echo)  # type: ignore[arg-type]
    click.echo(f"\nPrefect  {addresses['prefect']}\nMLflow   {addresses['mlflow']}")
    click.echo(f"worker   of pool {addresses.get('pool', options['pool'])}; `refine deploy` gives it something to do")
    click.echo("`refine status` shows what runs, `refine down` ends it")


@click.command()
@options.pool("gpu")
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
