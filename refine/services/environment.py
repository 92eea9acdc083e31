"""The environment of Prefect and MLflow: nothing phones home, SQLite is not locked, what is dead is noticed.

Set before prefect is imported; what the user has set already stays.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from refine import paths
from refine.tracking.connection import ENVIRONMENT as MLFLOW

PREFECT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # seconds; a flow without one for 90 is dead
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",  # never pickles
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_CLI_PROMPT": "false",
}
OTHERS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DVC_NO_ANALYTICS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
QUIET = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}  # the flow says itself what it does


def variables() -> dict[str, str]:
    """What is set for every program of ours, as far as the user has not set it otherwise."""
    return {name: os.environ.get(name, value) for name, value in {**MLFLOW, **PREFECT, **OTHERS}.items()}


def prepare(quiet: bool = False) -> None:
    """Set what is not set. `quiet`: Prefect's log goes to its API and not to the console."""
    for name, value in {**MLFLOW, **PREFECT, **OTHERS, **(QUIET if quiet else {})}.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("PREFECT_API_URL"):
        folder = Path(os.environ.setdefault("PREFECT_HOME", str(paths.home() / "services" / "prefect")))
        with contextlib.suppress(OSError):  # one that cannot be written to is reported where work starts
            folder.mkdir(parents=True, exist_ok=True)
