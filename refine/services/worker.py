"""A Prefect worker of one pool, on this machine: `python -m refine.services.worker POOL`.

It waits until the server answers, so that the two can be started together and either can be started again.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path


def main(pool: str) -> None:
    """Become `prefect worker start` for `pool` (made as a pool of processes where there is none)."""
    from refine.services.prefect_api import wait_until_ready

    wait_until_ready(os.environ["PREFECT_API_URL"], patience=600)
    prefect = str(Path(sys.executable).parent / "prefect")
    command = [
        prefect,
        "worker",
        "start",
        "--pool",
        pool,
        "--type",
        "process",
        "--name",
        f"{socket.gethostname()}-{pool}",
    ]
    os.execv(prefect, command)


if __name__ == "__main__":
    main(sys.argv[1])
