"""Environment variables of Prefect and MLflow: no telemetry, no lock on SQLite, quick notice of dead flows.

Call `prepare` before prefect is imported. Variables that the user has set stay as they are.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from refine.system.addresses import reach_directly
from refine.system.local_services import services_folder
from refine.tracking.connection import ENVIRONMENT as MLFLOW

PREFECT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # seconds; a flow without one for 90 is dead
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",  # never pickle
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_CLI_PROMPT": "false",
}
OTHERS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DVC_NO_ANALYTICS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
QUIET = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}  # the flow prints its own progress


def variables() -> dict[str, str]:
    """The variables of every program that `refine up` starts. The user's values go first."""
    reach_directly()
    return {name: os.environ.get(name, value) for name, value in {**MLFLOW, **PREFECT, **OTHERS}.items()}


def prepare(quiet: bool = False) -> None:
    """Set the variables that the user has not set. `quiet`: Prefect logs to its API and not to the console."""
    reach_directly()
    for name, value in {**MLFLOW, **PREFECT, **OTHERS, **(QUIET if quiet else {})}.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("PREFECT_API_URL"):
        folder = Path(os.environ.setdefault("PREFECT_HOME", str(services_folder() / "prefect")))
        with contextlib.suppress(OSError):  # `writable` reports it when work starts
            folder.mkdir(parents=True, exist_ok=True)
