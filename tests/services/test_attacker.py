"""Another page, another user or a stolen name cannot make Prefect's server run a command; our own programs can."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import stat
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from click.testing import CliRunner
from starlette.responses import PlainTextResponse
from starlette.routing import Route, Router, WebSocketRoute
from starlette.testclient import TestClient

from refine.cli.main import cli
from refine.errors import ServiceError, SettingError
from refine.services import prefect_api, prefect_secret, prefect_server, supervisord_conf

EVIL = "http://evil.example"


def ask(url: str, body=None, method: str | None = None, **headers: str) -> int:
    """The status with which the server answers. Names of headers have _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **named}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def basic(secret: str) -> str:
    return "Basic " + base64.b64encode(secret.encode()).decode()


def attack(api: str, secret: str) -> None:
    """Everything that a page or a user without the secret can send is refused; with it, it would work."""
    deployment = {"name": "evil", "flow_id": "6b7cf0b5-5d0a-4b25-8e31-0c8a3b9f8a11", "job_variables": {"command": "id"}}
    wanted = [
        (f"{api}/flows/", {"name": "evil"}),
        (f"{api}/deployments/", deployment),
        (f"{api}/flow_runs/", {"flow_id": deployment["flow_id"]}),
        (f"{api}/flow_runs/filter", {}),
        (f"{api}/work_pools/", {"name": "evil", "type": "process"}),
    ]
    for url, body in wanted:
        assert ask(url, body) == 401
        assert ask(url, body, Origin=EVIL) == 401
        assert ask(url, body, Content_Type="text/plain", Origin=EVIL) == 401, "what a page may send without asking"
        for wrong in ("refine:guess", "refine:", ":", secret[:-1], secret + "x"):
            assert ask(url, body, Authorization=basic(wrong)) == 401
        assert ask(url, body, Authorization=f"Bearer {secret}") == 401
        assert ask(url, body, Host="evil.example", Authorization=basic(secret)) == 400, "a name that points here"
        assert ask(url, method="OPTIONS", Origin=EVIL, Access_Control_Request_Method="POST") == 400
    assert ask(f"{api}/flows/", {"name": "own"}, Authorization=basic(secret)) in (200, 201)


def own_client(api: prefect_api.Api) -> str:
    """In a new process, with the variables that our programs set: make a flow, and send an event by websocket."""
    code = (
        "import asyncio\nfrom prefect.client.orchestration import get_client\nfrom prefect.events import Event\n"
        "from prefect.events.clients import PrefectEventsClient\n"
        "with get_client(sync_client=True) as client:\n    client.create_flow_from_name('own')\n"
        "async def send():\n    async with PrefectEventsClient() as events:\n"
        "        await events.emit(Event(event='own', resource={'prefect.resource.id': 'own'}))\n"
        "asyncio.run(send())\nprint('works')\n"
    )
    environment = {**os.environ, **api.variables()}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    return done.stdout.strip() or done.stderr


async def _socket(socket):
    await socket.accept()
    await socket.close()


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.6", "127.0.0.1@evil", ""])
def test_requests_and_websockets_that_name_another_host_are_refused(host):
    routes = [Route("/", lambda request: PlainTextResponse("here")), WebSocketRoute("/socket", _socket)]
    client = TestClient(prefect_server.only_for("10.0.0.5", Router(routes)))
    for own in ("10.0.0.5", "10.0.0.5:4200", "localhost:4200", "127.0.0.1:4200"):
        assert client.get("/", headers={"Host": own}).text == "here"
        with client.websocket_connect("/socket", headers={"Host": own}):
            pass
    assert client.get("/", headers={"Host": host}).status_code == 400
    with pytest.raises(Exception), client.websocket_connect("/socket", headers={"Host": host}):  # noqa: B017
        pass


def test_the_temporary_server_of_a_flow_answers_the_flow_alone(home):
    with prefect_api.prefect_api() as url:
        prefect_api.wait_until_ready(url)
        secret = os.environ[prefect_secret.CLIENT]
        attack(url, secret)
        assert own_client(prefect_api.Api(url, secret, True)) == "works"
    assert prefect_secret.CLIENT not in os.environ
    with prefect_api.prefect_api() as url:
        assert os.environ[prefect_secret.CLIENT] != secret, "a new one for each run"


def test_a_server_does_not_start_without_a_secret(home, monkeypatch):
    monkeypatch.delenv(prefect_secret.SERVER, raising=False)
    with pytest.raises(ServiceError, match="does not start without PREFECT_SERVER_API_AUTH_STRING"):
        prefect_server.serve("127.0.0.1", 4200)


def test_the_secret_is_made_once_is_private_and_a_users_goes_first(home, monkeypatch):
    monkeypatch.delenv(prefect_secret.SERVER, raising=False)
    assert prefect_secret.kept() is None
    made = prefect_secret.choose()
    assert prefect_secret.choose() == made and len(made) > 40
    assert stat.S_IMODE((home / "services" / "prefect.secret").stat().st_mode) == 0o600
    assert CliRunner().invoke(cli, ["status", "--secret"]).output == f"{made}\n"
    text = supervisord_conf.render(supervisord_conf.UpOptions(), home / "socket")
    assert text.count(made) == 3, "the server, the worker and the janitor"
    assert 'PREFECT_SERVER_CORS_ALLOWED_ORIGINS="http://127.0.0.1:4200,http://localhost:4200"' in text
    monkeypatch.setenv(prefect_secret.SERVER, "me:open sesame")
    assert prefect_secret.choose() == prefect_secret.kept() == "me:open sesame"
    for wrong in ("no-colon", "me:", "me:pässword", "me:two\nlines"):
        monkeypatch.setenv(prefect_secret.SERVER, wrong)
        with pytest.raises(SettingError, match=r"expected user:password") as error:
            prefect_secret.choose()
        assert wrong not in str(error.value)


def test_without_a_server_there_is_no_secret_to_show(home):
    shown = CliRunner().invoke(cli, ["status", "--secret"])
    assert isinstance(shown.exception, ServiceError) and "`refine up` starts one" in str(shown.exception)


def test_the_secret_is_told_to_no_one_while_the_supervisor_is_dead(home, monkeypatch):
    from refine.system.local_services import state_file

    made = prefect_secret.choose()
    state_file().write_text('{"prefect_api": "http://127.0.0.1:4200/api"}')
    assert prefect_secret.secret_of("http://127.0.0.1:4200/api") is None
    monkeypatch.setattr(prefect_secret, "supervisor_runs", lambda: True)
    assert prefect_secret.secret_of("http://127.0.0.1:4200/api/") == made
    assert prefect_secret.secret_of("http://127.0.0.1:4201/api") is None


@pytest.mark.slow
def test_the_servers_of_refine_up_refuse_attackers_and_serve_us(services, home, checkout, monkeypatch):
    attack(services["prefect_api"], prefect_secret.kept() or "")
    chosen = prefect_api.chosen()
    assert chosen is not None and chosen.ours and own_client(chosen) == "works"
    prefect_api.check_answers(chosen)
    with pytest.raises(ServiceError, match=r"refuses access .* set PREFECT_API_AUTH_STRING"):
        prefect_api.check_answers(prefect_api.Api(chosen.url, "me:wrong", False))
    assert ask(f"{services['prefect']}/") == 200, "the page, which asks for the secret"
    assert ask(f"{services['prefect']}/", Host="evil.example") == 400
    mlflow = f"{services['mlflow']}/api/2.0/mlflow/experiments/create"
    assert ask(mlflow, {"name": "evil"}, Host="evil.example") == 403
    assert ask(mlflow, {"name": "evil"}, Origin=EVIL) == 403
    assert ask(mlflow, {"name": "own"}) == 200
    monkeypatch.setenv("PREFECT_API_URL", services["prefect_api"])
    deploy = [sys.executable, "-m", "refine.cli.main", "deploy"]
    done = subprocess.run(deploy, cwd=checkout, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "$(refine status --secret)" in done.stdout, done.stderr
    assert (prefect_secret.kept() or "").partition(":")[2] not in done.stdout + done.stderr
    asyncio.run(_websocket_is_refused(services["prefect_api"]))


async def _websocket_is_refused(api: str) -> None:
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed, InvalidStatus

    address = api.replace("http://", "ws://") + "/events/in"
    with pytest.raises(InvalidStatus):
        async with connect(address, additional_headers={"Host": "evil.example"}):
            pass
    async with connect(address, subprotocols=["prefect"]) as socket:
        await socket.send(json.dumps({"type": "auth", "token": "guess"}))
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(socket.recv(), 10)
