"""`refine deploy` refuses, in one line, what cannot run, before it registers anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from click.testing import CliRunner

from refine.cli import deploy
from refine.cli.main import cli
from refine.errors import ServiceError, SettingError


@pytest.mark.parametrize(
    ("cron", "timezone"), [("every night", "UTC"), ("0 25 * * *", "UTC"), ("0 2 * * *", "Mars/Olympus")]
)
def test_an_invalid_schedule_is_refused_with_an_example(cron, timezone):
    with pytest.raises(SettingError, match=r"minute hour day month weekday, as in '0 2 \* \* \*'") as error:
        deploy.check_schedule(cron, timezone)
    assert cron in str(error.value) and "\n" not in str(error.value)
    deploy.check_schedule("0 2 * * *", "Europe/Berlin")


def test_without_a_server_it_says_how_to_start_one(tmp_path, monkeypatch, checkout):
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("REFINE_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    result = CliRunner().invoke(cli, ["deploy"])
    assert isinstance(result.exception, ServiceError) and "start one with `refine up`" in str(result.exception)


class Prefect(BaseHTTPRequestHandler):
    """The part of Prefect's API that `refine deploy` uses before it registers anything."""

    locked = False

    def do_GET(self):
        if "csrf" in self.path:
            return self.answer({}, 404)  # as a server without CSRF tokens answers
        self.answer("3.8.8" if self.path.endswith("/version") else True)

    def do_POST(self):
        pool = {"name": "gpu", "type": "process", "id": "6b7cf0b5-5d0a-4b25-8e31-0c8a3b9f8a11", "base_job_template": {}}
        self.answer([pool], 401 if self.locked else 200)

    def answer(self, body, status=200):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *arguments):
        """Nothing on the console."""


@pytest.mark.parametrize(
    ("locked", "message"),
    [(False, "error: no work pool 'gpus' (did you mean 'gpu'?)"), (True, "set PREFECT_API_AUTH_STRING")],
)
def test_it_asks_the_server_that_refine_up_started(tmp_path, checkout, locked, message):
    """In a new process: Prefect reads the address once, when it is imported."""
    handler = type("Handler", (Prefect,), {"locked": locked})
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "services").mkdir()
    state = {"prefect_api": f"http://127.0.0.1:{server.server_port}/api", "pool": "gpu"}
    (tmp_path / "services" / "state.json").write_text(json.dumps(state))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | {"REFINE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "refine.cli.main", "deploy", "--pool", "gpus"]
    try:
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=120)
    finally:
        server.shutdown()
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
