"""`refine deploy`: register the deployments of flows/prefect.yaml with Prefect's server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from refine.cli import options
from refine.errors import ServiceError, SettingError

FILE = Path("flows") / "prefect.yaml"


@click.command()
@options.pool(None, shown="that of `refine up`, or gpu")
@click.option("--cron", default="0 2 * * *", show_default=True, help="Schedule of the nightly experiment.")
@click.option("--timezone", default="UTC", show_default=True, help="Time zone of --cron, for example Europe/Berlin.")
@click.option("--checkout", show_default="this folder", help="Project folder on workers without REFINE_CHECKOUT.")
@click.option(
    "--notify",
    envvar="REFINE_NOTIFY",
    show_envvar=True,
    metavar="URL|TYPE/NAME",
    help="Webhook or notification block of Prefect that is told when a nightly fails or the champion changes.",
)
def deploy(pool: str | None, cron: str, timezone: str, checkout: str | None, notify: str | None) -> None:
    """Register the experiment (nightly and on demand), each phase, the evaluation and the paper's sweeps."""
    from refine.services import environment, notifications, prefect_api, prefect_secret, work_pools
    from refine.system.local_services import services_state

    api = prefect_api.server()
    pool = pool or services_state().get("pool") or "gpu"
    environment.prepare(quiet=True)
    os.environ.update(api.variables())  # before Prefect is imported: it reads them only then
    check_schedule(cron, timezone)
    if notify:
        notifications.check(notify)
    if not FILE.exists():
        raise SettingError(f"{FILE} does not exist here: run `refine deploy` in the project's folder")
    work_pools.check(pool)
    variables = {
        "REFINE_POOL": pool,
        "REFINE_CRON": cron,
        "REFINE_TIMEZONE": timezone,
        "REFINE_CHECKOUT": checkout or str(Path.cwd()),
    }
    prefect = str(Path(sys.executable).parent / "prefect")
    command = [prefect, "--no-prompt", "deploy", "--all", "--prefect-file", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise ServiceError(f"prefect deploy failed: {' '.join(lines[-1].split()) if lines else 'without a message'}")
    click.echo(f"deployed to pool {pool}; nightly at {cron!r} ({timezone})")
    if notify:
        notifications.notify(notify)
        click.echo("a nightly that fails and a champion that changes are notified")
    for name, page in pages("nightly", "experiment").items():
        click.echo(f"{name:<11}{page}")
    click.echo("start a run on the page of experiment, or with")
    secret = f"{prefect_secret.CLIENT}=$(refine status --secret) " if api.ours else ""
    click.echo(f"{secret}PREFECT_API_URL={api.url} prefect deployment run refine-experiment/experiment")


def pages(*names: str) -> dict[str, str]:
    """The page of each of these deployments of the experiment, on the server in use."""
    from prefect.client.orchestration import get_client
    from prefect.utilities.urls import url_for

    with get_client(sync_client=True) as client:
        found = {name: client.read_deployment_by_name(f"refine-experiment/{name}").id for name in names}
    return {name: page for name, one in found.items() if (page := url_for("deployment", obj_id=one))}


def check_schedule(cron: str, timezone: str) -> None:
    """Raises SettingError: `cron` is no cron expression, or `timezone` is no time zone."""
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    try:
        CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise SettingError(
            f"schedule {cron!r} in {timezone!r}: {message}; expected minute hour day month weekday, as in '0 2 * * *'"
        ) from None
