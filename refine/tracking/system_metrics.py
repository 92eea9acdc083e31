"""Use of processor, memory, disk, network and GPU while a run trains, as MLflow's `system/...` metrics.

MLflow measures them every ten seconds; a run that takes less has none. `MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false`
turns them off. Those of a GPU need the package nvidia-ml-py; without it MLflow leaves them out.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from refine.errors import reason

if TYPE_CHECKING:
    from mlflow import MlflowClient

VARIABLE = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
OFF = ("false", "0")
PATIENCE = 5.0  # time for the last values to be sent [s]

log = logging.getLogger(__name__)


def wanted() -> bool:
    """Whether the user left them on."""
    return os.environ.get(VARIABLE, "true").strip().lower() not in OFF


@contextlib.contextmanager
def system_metrics(client: MlflowClient, run_id: str) -> Iterator[None]:
    """Log the system metrics of this machine to a run during the block. No error of theirs ends the block, and a server
    that does not answer holds it up by PATIENCE at most."""
    if not wanted():
        yield
        return
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)  # a run without them is no error
    try:
        monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=client.tracking_uri)
        monitor.start()
    except Exception as error:  # psutil or a driver that cannot measure here
        log.warning("no system metrics of run %s: %s", run_id, reason(error))
        yield
        return
    try:
        yield
    finally:
        last = threading.Thread(target=monitor.finish, name="last system metrics", daemon=True)
        last.start()
        last.join(PATIENCE)
