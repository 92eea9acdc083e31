"""`refine down` ends the MLflow runs whose processes it stopped: afterwards no janitor is there to do it."""

from __future__ import annotations

from collections.abc import Callable

from refine.errors import reason
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
