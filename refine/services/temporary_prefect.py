"""A Prefect API server for one flow: `python -m refine.services.temporary_prefect PORT`.

It ends when the flow's process ends, even by SIGKILL; Prefect's own temporary server does not. It serves no pages.
`refine up` starts a server with pages on the same database.
"""

from __future__ import annotations

import os
import sys

from refine.services import prefect_server
from refine.system.one_line_errors import one_line_errors
from refine.system.processes import die_with_parent

# What Prefect sets for its own temporary server: no pages, and only the services that one run needs.
EPHEMERAL = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}


def main(port: int) -> None:
    """Serve on loopback until the parent ends or SIGTERM comes."""
    die_with_parent()
    os.environ.update(EPHEMERAL)
    prefect_server.serve("127.0.0.1", port, log_level="error", lifespan="on")


if __name__ == "__main__":
    with one_line_errors():
        main(int(sys.argv[1]))
