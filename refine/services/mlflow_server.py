"""MLflow's server without its assistant: `python -m refine.services.mlflow_server HOST PORT`.

It runs what `mlflow server` runs, with MLflow's own settings in the environment. The assistant of MLflow's pages
answers every user of the machine, and has tools that run commands and write files as the user who started the server.
So its addresses do not exist here.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from refine.system.one_line_errors import one_line_errors

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

ASSISTANT = "/mlflow/assistant"  # in every address of the assistant
APP = "refine.services.mlflow_server:app"


def app() -> ASGIApp:
    """MLflow's application without the assistant. uvicorn calls it in each of its processes."""
    from mlflow.server.fastapi_app import app as served

    return without_assistant(served)


def without_assistant(served: ASGIApp) -> ASGIApp:
    """`served`, but requests to the assistant get status 404."""
    from starlette.responses import PlainTextResponse

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if ASSISTANT in scope.get("path", ""):
            await PlainTextResponse("`refine up` has switched MLflow's assistant off", 404)(scope, receive, send)
        else:
            await served(scope, receive, send)

    return answer


def main(host: str, port: str) -> None:
    """Serve until SIGTERM comes."""
    import mlflow.server
    from mlflow.cli import cli

    build = mlflow.server._build_uvicorn_command  # it takes no other application from the command line

    def with_own_app(
        options: str | None, host: str, port: int, workers: int, name: str, env_file: Any = None, factory: bool = False
    ) -> list[str]:
        return build(options, host, port, workers, APP, env_file, True)

    mlflow.server._build_uvicorn_command = with_own_app
    cli.main(["server", "--host", host, "--port", port, "--workers", "1"], prog_name="mlflow")


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1], sys.argv[2])
