"""Prefect's server, which answers only under its own address: `python -m refine.services.prefect_server HOST PORT`.

It runs what `prefect server start` runs (API, pages, background services, with Prefect's own settings). Besides, it
refuses requests that name another host, requests that a browser sends from another page, and those without the
`user:password` in PREFECT_SERVER_API_AUTH_STRING.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from refine.errors import ServiceError
from refine.services.prefect_secret import SERVER
from refine.system.one_line_errors import one_line_errors

if TYPE_CHECKING:
    from starlette.types import ASGIApp

ORIGINS = "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"
LOOPBACK_NAMES = ("localhost", "127.0.0.1")


def origins(host: str, port: int) -> str:
    """The value of ORIGINS: the server's own addresses, as browsers name them."""
    return ",".join(dict.fromkeys(f"http://{name}:{port}" for name in (host, *LOOPBACK_NAMES)))


def only_for(host: str, app: ASGIApp) -> ASGIApp:
    """`app`, for requests and websockets that name `host` or this machine's loopback: others get status 400. (A page
    whose own name resolves to this machine would otherwise count as a page of this server.)"""
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    return TrustedHostMiddleware(app, allowed_hosts=[host, *LOOPBACK_NAMES], www_redirect=False)


def serve(host: str, port: int, **options: Any) -> None:
    """Serve until SIGTERM comes. Raises ServiceError: the environment holds no `user:password`."""
    if not os.environ.get(SERVER):
        raise ServiceError(f"Prefect's server does not start without {SERVER}; `refine up` sets it")
    os.environ.setdefault(ORIGINS, origins(host, port))
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    server = get_current_settings().server
    uvicorn.run(
        only_for(host, create_app(final=True)),
        host=host,
        port=port,
        timeout_keep_alive=server.api.keepalive_timeout,
        ws_ping_interval=server.api.websocket_ping_interval,
        ws_ping_timeout=server.api.websocket_ping_timeout,
        **{"log_level": server.logging_level.lower(), **options},
    )


if __name__ == "__main__":
    with one_line_errors():
        serve(sys.argv[1], int(sys.argv[2]))
