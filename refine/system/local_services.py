"""The services that `refine up` started: their addresses, and whether their supervisor runs."""

from __future__ import annotations

import json
from pathlib import Path

import psutil

from refine import paths


def state_file() -> Path:
    """The file in which `refine up` notes its services."""
    return paths.home() / "services" / "state.json"


def noted(name: str) -> str | None:
    """What `refine up` noted under `name` (prefect, prefect_api, mlflow, pool). None if it started nothing."""
    try:
        return str(json.loads(state_file().read_text(encoding="utf-8"))[name])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def configuration_file() -> Path:
    """The configuration of the supervisor."""
    return paths.home() / "services" / "supervisord.conf"


def supervisor_runs() -> bool:
    """Whether the supervisor of this $REFINE_HOME runs."""
    return supervisor_pid() is not None


def supervisor_pid() -> int | None:
    """Process id of the supervisor of this $REFINE_HOME; None if it does not run."""
    try:
        pid = int((paths.home() / "services" / "supervisord.pid").read_text())
        process = psutil.Process(pid)
        ours = str(configuration_file()) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, psutil.Error):
        return None
    return pid if ours else None
