"""`refine down` ends the runs in MLflow and Prefect whose processes it stopped: no janitor is there to do it later."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from refine.errors import reason
from refine.services import flow_runs
from refine.system.local_services import OWN_DATABASE
from refine.tracking.connection import SQLITE_PREFIX, check_answers, connect, sqlite_file, tracking_uri
from refine.tracking.run import end_dead_runs


def end_runs(server: str | None, say: Callable[[str], None]) -> None:
    """End the runs that MLflow shows as RUNNING and whose process is gone. `say` gets a line for each, or one if
    MLflow cannot be asked.

    server: the address of MLflow's server, while it answers. None: that of `tracking_uri`, once it has ended.
    """
    uri = server or tracking_uri()
    if uri.startswith(SQLITE_PREFIX) and not sqlite_file(uri).exists():
        return
    try:
        check_answers(uri, patience=2.0)
        for run_id in end_dead_runs(connect(uri)):
            say(f"MLflow run {run_id} ended: its process is gone")
    except Exception as error:  # the services must stop all the same
        say(f"MLflow's runs stay as they are: {reason(error)}; `refine up` or `refine status` ends them later")


def end_flow_runs(services: Mapping[str, str], say: Callable[[str], None]) -> None:
    """End the runs of Prefect's server that the worker has left, while the server answers. `say` gets a line for each,
    or one if Prefect cannot be asked. services: what `refine up` recorded."""
    try:
        for name in flow_runs.end_runs(services):
            say(f"Prefect run {name} ended: its process is gone")
    except Exception as error:  # the services must stop all the same
        say(f"Prefect's runs stay as they are: {reason(error)}; `refine up` ends them later")


def end_runs_left(services: Mapping[str, str], say: Callable[[str], None]) -> None:
    """After the supervisor has died, and the servers with it: end the runs in MLflow's SQLite file. `say` gets a line
    for each, and one that says when the others end."""
    kept = "Prefect's runs"
    if services.get(OWN_DATABASE):
        kept = "MLflow's and Prefect's runs"
    else:
        end_runs(None, say)
    say(f"the services had died; the next `refine up` ends {kept} that died with them")
