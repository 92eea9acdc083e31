"""A Prefect API server for one run: it ends with the process that started it.

Prefect's own temporary server outlives a flow that is killed; this one does not. It has no page: `refine up` starts a
server to look at, on the same database.
"""

from __future__ import annotations

import os
import sys

# What Prefect sets for its own temporary server: no page, and only the services that one run needs.
EPHEMERAL = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}


def main(port: int) -> None:
    """Serve on loopback until the parent is gone or SIGTERM comes."""
    from refine.system.processes import die_with_parent

    die_with_parent()
    os.environ.update(EPHEMERAL)
    import uvicorn

    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=port,
        log_level="error",
        lifespan="on",
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
