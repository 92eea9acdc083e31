"""`refine status`: the services of this machine and the runs in progress."""

from __future__ import annotations

import os
from datetime import timedelta

import click

from refine.errors import ServiceError

DIED = "the services have died with their supervisor; `refine up` starts them and ends the runs that died too"


@click.command()
@click.option("--secret", is_flag=True, help="Print only what Prefect's server asks for (PREFECT_API_AUTH_STRING).")
def status(secret: bool) -> None:
    """Show the services and the runs in progress."""
    if secret:
        click.echo(_secret())
        return
    for line in _services():
        click.echo(line)
    if _unknown():
        return
    runs = _running()
    click.echo("\nno run is in progress" if not runs else "\nruns in progress:")
    for line in runs:
        click.echo(f"  {line}")


def _services() -> list[str]:
    """A line for each program of `refine up`: name, state, process id, how long it runs, address."""
    from refine.services import up
    from refine.system.local_services import services_have_died, services_state

    state = services_state()
    lines = []
    for program in up.programs():
        since = f"for {timedelta(seconds=round(program.seconds))}" if program.pid else ""
        where = f"pool {state.get('pool')}" if program.name == "worker" else state.get(program.name, "")
        lines.append(f"{program.name:<8} {program.state:<9} {program.pid or '':<8} {since:<12} {where}")
    if lines:
        lines.append("Prefect's page asks for a password: `refine status --secret` prints it")
    return lines or [DIED if services_have_died() else "the services do not run; `refine up` starts them"]


def _unknown() -> bool:
    """Whether the runs are in a database of MLflow's own, which only a server of `refine up` reads, and none runs."""
    from refine.system.local_services import OWN_DATABASE, services_have_died, services_state

    named = os.environ.get("MLFLOW_TRACKING_URI")
    return not named and services_have_died() and bool(services_state().get(OWN_DATABASE))


def _secret() -> str:
    from refine.services import prefect_secret

    known = prefect_secret.kept()
    if known is None:
        raise ServiceError("no Prefect server has been started here yet: `refine up` starts one and makes its secret")
    return known


def _running() -> list[str]:
    """A line for each run that MLflow shows as RUNNING. Runs whose process is dead are ended first."""
    from refine.tracking.connection import connect, tracking_uri
    from refine.tracking.in_progress import may_run

    if not may_run(tracking_uri()):
        return []
    from refine.tracking.run import end_dead_runs

    client = connect()
    end_dead_runs(client)
    experiments = {one.experiment_id: one.name for one in client.search_experiments()}
    found = client.search_runs(list(experiments), "attributes.status = 'RUNNING'", max_results=200)
    return [f"{experiments[run.info.experiment_id]}: {run.info.run_name}  (MLflow {run.info.run_id})" for run in found]
