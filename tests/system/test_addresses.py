"""Servers on this machine are never asked through a proxy, by any client, nor by the processes that we start."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import urllib.request

import pytest

from refine.errors import SettingError
from refine.services.prefect_api import running_server
from refine.system.addresses import basic, host_of, http_address, reach_directly, request
from refine.system.local_services import state_file

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
CLOSED = "http://127.0.0.1:9"

CLIENTS = """
import asyncio, sys, urllib.request
import httpx, requests
from refine.system.addresses import reach_directly
if sys.argv[2] == "ours":
    reach_directly()
worked = []
for host in ("127.0.0.1", "localhost"):
    url = f"http://{host}:{sys.argv[1]}/"
    for name, get in {
        "httpx": lambda: httpx.get(url).raise_for_status(),
        "requests": lambda: requests.get(url).raise_for_status(),
        "urllib": lambda: urllib.request.urlopen(url).close(),
    }.items():
        try:
            get()
            worked.append(name)
        except Exception:
            pass
    from websockets.asyncio.client import connect, get_proxy
    from websockets.uri import parse_uri
    if get_proxy(parse_uri(f"ws://{host}:{sys.argv[1]}/")) is None:
        worked.append("websockets")
    import botocore.utils
    if not botocore.utils.get_environ_proxies(url):
        worked.append("botocore")
print(len(worked))
"""


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in (*PROXIES, *map(str.upper, PROXIES)):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    # urllib keeps the proxies of its first request: later tests of this process would be sent to the closed one
    monkeypatch.setattr(urllib.request, "_opener", None)


@pytest.fixture
def port():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            """Nothing on the console."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("named", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_every_client_reaches_this_machine_past_a_closed_proxy(port, named):
    environment = {**os.environ, named: CLOSED}
    asked = [
        subprocess.run(
            [sys.executable, "-c", CLIENTS, str(port), whose], env=environment, capture_output=True, text=True
        )
        for whose in ("ours", "plain")
    ]
    assert asked[0].stdout == "10\n", asked[0].stderr
    assert int(asked[1].stdout) < 10, "the proxy has no effect, so this test shows nothing"


def test_the_users_exceptions_stay_and_nothing_is_set_without_a_proxy(monkeypatch):
    reach_directly()
    assert "no_proxy" not in os.environ
    monkeypatch.setenv("HTTPS_PROXY", CLOSED)
    monkeypatch.setenv("NO_PROXY", "intern.example, 10.0.0.1")
    reach_directly("10.0.0.5")
    reach_directly()
    wanted = "intern.example,10.0.0.1,localhost,127.0.0.1,::1,10.0.0.5"
    assert set(os.environ["no_proxy"].split(",")) == set(wanted.split(","))
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"]
    monkeypatch.setenv("no_proxy", "*")
    reach_directly()
    assert os.environ["no_proxy"] == "*"


def test_the_servers_of_refine_up_are_asked_directly_under_any_address(monkeypatch, home):
    monkeypatch.setenv("HTTP_PROXY", CLOSED)
    state_file().parent.mkdir()
    state_file().write_text('{"prefect_api": "http://127.0.0.3:9/api"}')
    assert running_server() is None and "127.0.0.3" in os.environ["no_proxy"]
    assert host_of("http://[::1") == host_of("") == ""


def test_credentials_are_taken_from_an_address_as_they_are_meant():
    assert http_address("http://me:p%40ss@h:1/api/", "X", "x") == ("http://h:1/api", "me:p@ss")
    assert http_address("https://h", "X", "x") == ("https://h", "")
    assert request("http://h", basic("me:pass")).get_header("Authorization") == "Basic bWU6cGFzcw=="
    assert not request("http://h").headers


@pytest.mark.parametrize(
    "url",
    [
        *("", "h:1", "http://", "http://h:x", "http://h:99999", "http://[::1", "http://a b", "//h"),
        *("http://m/e:pass@h:1", "http://m?e:pass@h", "http://m/:pass@h", "http://h#:pass@h"),
    ],
)
def test_what_is_no_address_is_refused_with_the_settings_name(url):
    with pytest.raises(SettingError, match=r"^THE_VARIABLE is not the address of a server: expected http://HOST"):
        http_address(url, "THE_VARIABLE", "http://HOST")
