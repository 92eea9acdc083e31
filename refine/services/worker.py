"""A Prefect worker of one pool, on this machine: `python -m refine.services.worker POOL`.

It waits until the server answers, so server and worker can be started together and restarted in any order.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

from refine import paths
from refine.errors import ServiceError
from refine.services import checkout, environment, prefect_api, work_pools
from refine.services.work_pools import PROCESSES
from refine.system.one_line_errors import one_line_errors
from refine.system.processes import ProcessFailed, run_in_own_process
from refine.tracking.connection import VARIABLE, check_answers, tracking_uri, writable


def main(pool: str) -> None:
    """Replace this process by `prefect worker start`. A pool that does not exist is created as a pool of processes."""
    prefect_api.wait_until_ready(os.environ["PREFECT_API_URL"], patience=600)
    prefect = str(Path(sys.executable).parent / "prefect")
    name = f"{socket.gethostname()}-{pool}"
    os.execv(prefect, [prefect, "worker", "start", "--pool", pool, "--type", PROCESSES, "--name", name])


def serve(pool: str) -> None:
    """Run a worker of `pool` until this process ends. The worker and its runs always end with it.

    Raises SettingError: this is not the project's folder. Raises ServiceError: a server does not answer, $REFINE_HOME
    cannot be written to, or there is no pool of processes with this name.
    """
    here = checkout.check(Path(os.environ.get(checkout.VARIABLE) or Path.cwd()))
    api = prefect_api.server()
    mlflow = tracking_uri()
    check_answers(mlflow)
    writable(paths.home())
    os.environ.update({**api.variables(), checkout.VARIABLE: str(here)})
    if mlflow.startswith("http"):
        os.environ[VARIABLE] = mlflow
    environment.prepare()
    work_pools.check(pool, PROCESSES)
    signal.signal(signal.SIGTERM, _stop)
    try:
        run_in_own_process([sys.executable, "-m", "refine.services.worker", pool], echo=_print, name="the worker")
    except ProcessFailed as error:
        raise ServiceError(str(error).splitlines()[0]) from None
    except KeyboardInterrupt:
        return


def _print(line: str) -> None:
    print(line, flush=True)


def _stop(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1])
