"""The files that describe the services of `refine up`, and whether their supervisor still runs."""

from __future__ import annotations

import logging
from pathlib import Path

import psutil

from refine import paths
from refine.errors import DataError, reason
from refine.system.readers import in_form, read_json

log = logging.getLogger(__name__)

OWN_DATABASE = "mlflow_database"  # in the state: the kind of MLflow's database; empty if it is SQLite in $REFINE_HOME


def services_folder() -> Path:
    """The folder of the services' configuration, state, logs and Prefect's database."""
    return paths.home() / "services"


def state_file() -> Path:
    """The file in which `refine up` records what it started."""
    return services_folder() / "state.json"


def services_state() -> dict[str, str]:
    """What `refine up` started: the addresses prefect, prefect_api and mlflow, the worker's pool, and OWN_DATABASE.
    Empty if it started nothing; with a warning, if the record is damaged."""
    file, what = state_file(), "the services' addresses"
    if not file.exists():
        return {}
    try:
        found = read_json(file, what)
        with in_form(file, what):
            for name, value in found.items():
                if not isinstance(value, str):
                    raise TypeError(f"{name} is {reason(repr(value), 40)}: expected text")
    except DataError as error:
        log.warning("%s: it is ignored; `refine down` and `refine up` write it again", error)
        return {}
    return found


def configuration_file() -> Path:
    """The configuration that supervisord reads."""
    return services_folder() / "supervisord.conf"


def supervisor_runs() -> bool:
    """Whether the supervisor of this $REFINE_HOME runs."""
    return supervisor_pid() is not None


def services_have_died() -> bool:
    """Whether `refine up` started services here that ended without `refine down`."""
    return state_file().exists() and not supervisor_runs()


def supervisor_pid() -> int | None:
    """Process id of the supervisor of this $REFINE_HOME. None if it does not run."""
    try:
        pid = int((services_folder() / "supervisord.pid").read_text())
        process = psutil.Process(pid)
        # After a reboot another process may have this id.
        ours = str(configuration_file()) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, psutil.Error):
        return None
    return pid if ours else None
