"""No message contains a password, key or token, whatever the address and whoever words the message."""

from __future__ import annotations

import http.server
import itertools
import os
import subprocess
import sys
import threading
import time
from urllib.parse import quote

import pytest

from refine.data import parquet
from refine.errors import RefineError, reason, without_secrets
from refine.services import prefect_api, server_databases
from refine.system.one_line_errors import one_line_errors
from refine.tracking.connection import check_answers, connect

SECRET = "Hush/99+x"
USERS = ("me:{}@", ":{}@", "{}:x@", "me:a@{}@", "me:{}#?/@", "{}@", "m/e:{}@", "m?e:{}@", "me/:{}@")
SCHEMES = ("http", "https", "postgresql+asyncpg", "postgresql", "s3", "sqlite", "git+https", "mysql", "ws", "gs")
ADDRESSES = [
    f"{scheme}://{user.format(written)}host:5000/place?x=1"
    for scheme, user in itertools.product(SCHEMES, USERS)
    for written in ("Hush99x", quote(SECRET, safe=""), SECRET)
    if not (user.startswith("{}") and written == SECRET)  # a name before a slash: s3://a/b@c is a place
]
TOKENS = [
    f"https://host/x?{name}={quote(SECRET, safe='')}&y=2"
    for name in ("token", "access_token", "X-Amz-Signature", "X-Amz-Credential", "api_key", "password", "sig", "AUTH")
]


@pytest.mark.parametrize("frame", ["{}", "cannot reach {}", "'{}'", "two: {}, {}", "({}): no\nroute"])
def test_an_address_is_shown_without_its_secrets(frame):
    for address in ADDRESSES + TOKENS:
        shown = without_secrets(frame.format(address, address))
        assert "Hush" not in shown and "Hush" not in reason(frame.format(address, address)), address
        assert address.split("://")[0] in shown
    assert "Hush" not in without_secrets("me:Hush99@host/x is no address")


@pytest.mark.parametrize("part", ["'{}@host'", "nonnumeric port: '{}'", "password {} refused"])
def test_a_part_of_an_address_that_a_library_quotes_is_hidden(part):
    for address, written in itertools.product(ADDRESSES, ("Hush99x", SECRET, quote(SECRET, safe=""))):
        if written in address and f"{written}:x@" not in address and f"//{written}@" not in address:
            assert "Hush" not in without_secrets(part.format(written), address), address


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/metric?metric=val&plot_metric_keys=1",
        "s3://bucket/folder@2/file.parquet",
        "models:/refine-sample@champion",
        "git@github.com: permission denied",
        "sqlite:////home/me/mlflow.db",
        "a note: 3 of 4 tokens are bad",
        "at 12:30 me@host came",
    ],
)
def test_what_is_no_secret_stays(text):
    assert without_secrets(text) == text


@pytest.mark.parametrize("text", ["?", "?token", "://", "a:", "://a:", "@", "://a@", "?token="])
def test_a_long_message_takes_no_time(text):
    started = time.monotonic()
    reason(text * 50_000)
    assert time.monotonic() - started < 2


def test_the_last_line_of_a_command_hides_what_slipped_through(capsys):
    with pytest.raises(SystemExit), one_line_errors():
        raise RefineError("postgresql://me:Hush99@db/x is wrong")
    assert capsys.readouterr().err == "error: postgresql://db/x is wrong\n"


@pytest.fixture(params=["gibberish", "closes", "500", "404"])
def bad_server(request):
    """The port of a server that answers badly."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if request.param == "gibberish":
                self.wfile.write(b"Authorization: " + self.headers.get("Authorization", "").encode() + b"\r\n\r\n")
            elif request.param != "closes":
                self.send_error(int(request.param))

        do_HEAD = do_POST = do_PUT = do_GET

        def log_message(self, *arguments):
            """Nothing on the console."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_a_server_that_answers_badly_is_one_line_without_the_password(bad_server, home, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", f"http://me:Hush99@127.0.0.1:{bad_server}/api")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://me:Hush99@127.0.0.1:{bad_server}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "Hush99")
    for ask in (
        prefect_api.server,
        lambda: connect(f"http://me:Hush99@127.0.0.1:{bad_server}"),
        lambda: parquet.ask_bucket("s3://bucket/x", "s3://bucket/x"),
    ):
        with pytest.raises(RefineError) as error:
            ask()
        assert "Hush" not in str(error.value) and "\n" not in str(error.value)


MALFORMED = [
    "http://me:Hush99@127.0.0.1",
    "http://me:Hush99@127.0.0.1:9/api",
    "http://me:Hush/99@127.0.0.1:9",
    "http://me:Hush99@127.0.0.1:port",
    "http://me:Hush99@",
    "http://me:Hush 99@host",
    "http://me:Hush99@[::1",
    "me:Hush99@127.0.0.1:9",
    "ftp://me:Hush99@127.0.0.1:9",
    "http://me:Hush99@host\n",
]


@pytest.mark.parametrize("address", MALFORMED)
def test_any_address_of_a_server_gives_one_line_without_the_password(address, home, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", address)
    with pytest.raises(RefineError) as error:
        prefect_api.server()
    assert "Hush" not in str(error.value) and "\n" not in str(error.value)
    for ask in (check_answers, connect) if address.startswith("http") else (connect,):
        with pytest.raises(RefineError) as error:
            ask(address)
        assert "Hush" not in str(error.value) and "\n" not in str(error.value)
    for server in ("prefect", "mlflow"):
        with pytest.raises(RefineError) as error:
            server_databases.check(address, server)
        assert "Hush" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "address", ["s3://KEY:Hush/99@bucket/x", "s3://KEY:Hush99@bucket", "s3://bucket/x?token=Hush99"]
)
def test_keys_in_an_s3_address_are_refused_without_being_shown(address):
    for ask in (parquet.find_parquet_files, server_databases.check_artifacts):
        with pytest.raises(RefineError, match="holds credentials; put them into AWS_ACCESS_KEY_ID") as error:
            ask(address)
        assert "Hush" not in str(error.value)


@pytest.mark.parametrize("verb", [["deploy"], ["doctor"], ["worker"], ["summary"]])
def test_no_verb_shows_the_password_of_prefects_address(verb, home, checkout):
    variables = {
        **os.environ,
        "PREFECT_API_URL": "http://me:Hush99@127.0.0.1",
        "MLFLOW_TRACKING_URI": "http://a:Hush9@h",
    }
    command = [sys.executable, "-m", "refine.cli.main", *verb]
    done = subprocess.run(command, cwd=checkout, env=variables, capture_output=True, text=True, timeout=120)
    assert "Hush" not in done.stdout + done.stderr and "Traceback" not in done.stderr
