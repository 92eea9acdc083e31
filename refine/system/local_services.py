"""What `refine up` noted of the services that it started, and whether they are still looked after."""

from __future__ import annotations

import json
from pathlib import Path

import psutil

from refine import paths


def state_file() -> Path:
    """Where it is noted."""
    return paths.home() / "services" / "state.json"


def noted(name: str) -> str | None:
    """What `refine up` noted under `name` (prefect, prefect_api, mlflow, pool), if it started something."""
    try:
        return str(json.loads(state_file().read_text(encoding="utf-8"))[name])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def configuration_file() -> Path:
    """What its supervisor goes by."""
    return paths.home() / "services" / "supervisord.conf"


def supervisor_runs() -> bool:
    """Whether the supervisor of this $REFINE_HOME runs."""
    return supervisor_pid() is not None


def supervisor_pid() -> int | None:
    """Process id of the supervisor of this $REFINE_HOME, if it runs."""
    try:
        pid = int((paths.home() / "services" / "supervisord.pid").read_text())
        process = psutil.Process(pid)
        ours = str(configuration_file()) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, psutil.Error):
        return None
    return pid if ours else None
