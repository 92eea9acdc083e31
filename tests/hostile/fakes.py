"""Servers that answer nonsense: a client of MLflow's that takes everything, and an HTTP server that answers as told."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any


class Client:
    """Takes whatever it is given, as MLflow's client would, and gives `tags` for every version and run."""

    def __init__(self, tags: dict[str, str] | None = None) -> None:
        self.tags = tags or {}

    def log_batch(self, *args: Any, **more: Any) -> None:
        """Takes metrics."""

    def set_terminated(self, *args: Any, **more: Any) -> None:
        """Takes a status."""

    def get_run(self, run_id: str) -> Any:
        """A run with the tags."""
        return SimpleNamespace(data=SimpleNamespace(tags=self.tags, metrics={}), info=SimpleNamespace(run_id=run_id))

    def search_model_versions(self, *args: Any, **more: Any) -> Any:
        """One page with one version."""
        page = type("Page", (list,), {"token": None})
        return page([SimpleNamespace(version="1")])

    def get_model_version(self, name: str, number: str) -> Any:
        """A version with the tags."""
        return SimpleNamespace(name=name, version=number, tags=self.tags, aliases=["champion"], run_id="r", source="")


@contextlib.contextmanager
def server(status: int, body: bytes, headers: dict[str, str] | None = None, cut: bool = False) -> Iterator[str]:
    """The address of a server that answers every request with `status`, `headers` and `body`; with `cut`, it promises
    more bytes than it sends."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) + (100 if cut else 0)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_port}"
    finally:
        made.shutdown()
        made.server_close()
