"""A nightly that fails and a champion that changes are notified by Prefect's automations, on Prefect's real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from refine.errors import SettingError
from refine.services import notifications, prefect_api, prefect_secret
from refine.tracking.registry import Version
from tests.conftest import wait_for

# In a new process: Prefect reads its settings when it is imported. Arguments: what to notify, then the code to run.
START = """
import sys
from refine.errors import RefineError
from refine.services import environment
environment.prepare(quiet=True)
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from refine.services import notifications
from refine.tracking.registry import Version
target = sys.argv[1]

def nightly():
    from prefect import flow
    @flow(name="refine-experiment")
    def experiment(): pass
    with get_client(sync_client=True) as client:
        return client.create_deployment(client.create_flow(experiment), "nightly")

def shown():
    with get_client(sync_client=True) as client:
        for one in client.read_automations():
            print(one.name, *sorted(one.trigger.expect), one.actions[0].block_document_id, sep="|")
"""


def run(code: str, target: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", START + code, target]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def server(home):
    """A temporary Prefect server, in this process's environment."""
    with prefect_api.prefect_api() as url:
        prefect_api.wait_until_ready(url)
        yield url


def test_both_automations_are_made_once_and_renewed(server):
    """Also: the address is a secret of the block, a block must exist and must be one that notifies."""
    code = """
from prefect.blocks.notifications import SlackWebhook
from prefect.blocks.system import Secret
def refused(name):
    try:
        notifications.notify(name)
    except RefineError as error:
        print("refused:", error)
refused(target)
nightly()
notifications.notify(target)
shown()
SlackWebhook(url="https://hooks.slack.com/services/a/b/c").save("team")
notifications.notify("slack-webhook/team")
shown()
refused("slack-webhook/teams")
Secret(value="x").save("team")
refused("secret/team")
with get_client(sync_client=True) as client:
    print(client.read_block_document_by_name("refine", "custom-webhook", include_secrets=False).data)
"""
    done = run(code, "https://hooks.example.org/s3cr3t")
    assert done.returncode == 0, done.stderr
    *lines, block = done.stdout.splitlines()
    refused = [line for line in lines if line.startswith("refused: ")]
    made = [line.split("|") for line in lines if "|" in line]
    assert "no deployment refine-experiment/nightly: `refine deploy` registers it" in refused[0]
    assert "has no block slack-webhook/teams" in refused[1] and "secret/team sends no notifications" in refused[2]
    assert sorted(one[0] for one in made[:2]) == [notifications.NIGHTLY_FAILED, notifications.CHAMPION_CHANGED]
    assert {tuple(one[1:-1]) for one in made} == {(notifications.CHANGED,), tuple(sorted(notifications.FAILURES))}
    assert len(made) == 4 and {one[0] for one in made[2:]} == {one[0] for one in made[:2]}
    assert len({one[-1] for one in made[:2]}) == 1 and {one[-1] for one in made[:2]} != {one[-1] for one in made[2:]}
    assert "s3cr3t" not in block and "{{address}}" in block


@pytest.mark.parametrize("target", ["team", "slack-webhook/", "a/b/c", "ftp://host/x", "https://"])
def test_what_is_no_address_and_no_block_is_refused(target):
    with pytest.raises(SettingError, match=r"--notify") as error:
        notifications.check(target)
    assert "\n" not in str(error.value)
    notifications.check("https://hooks.example.org/x")
    notifications.check("slack-webhook/team")


def test_only_a_change_of_the_champion_is_an_event(monkeypatch):
    import prefect.events

    sent: list[tuple] = []
    monkeypatch.setattr(prefect.events, "emit_event", lambda name, **more: sent.append((name, more)))
    one, two = (Version("sample", n, {"phase": "mid", "arm": "sft", "champion.why": f"best {n}"}) for n in (1, 2))
    notifications.champion_changed(one, one)
    assert not sent
    notifications.champion_changed(None, one)
    notifications.champion_changed(one, two, "by hand")
    assert [name for name, _ in sent] == [notifications.CHANGED] * 2
    first, second = (more["payload"] for _, more in sent)
    assert first == {"model": "sample", "version": "1 (mid sft)", "before": "none", "why": "best 1"}
    assert (second["before"], second["why"]) == ("1 (mid sft)", "by hand")
    assert sent[0][1]["resource"]["prefect.resource.id"] == "refine.model.sample"


@pytest.fixture
def webhook():
    """A webhook on loopback: its address, and the texts that it has received."""
    received: list[str] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            """Nothing on the console."""

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", received
    server.shutdown()


@pytest.mark.slow
def test_deploy_prints_pages_and_the_messages_arrive_with_links_to_the_server_in_use(
    services, webhook, monkeypatch, checkout
):
    address, received = webhook
    command = [sys.executable, "-m", "refine.cli.main", "deploy"]
    deployed = subprocess.run(
        command, cwd=checkout, env={**os.environ, "REFINE_NOTIFY": address}, capture_output=True, text=True, timeout=180
    )
    assert deployed.returncode == 0, deployed.stderr
    assert "a nightly that fails and a champion that changes are notified" in deployed.stdout
    pages = dict(line.split() for line in deployed.stdout.splitlines() if "/deployments/deployment/" in line)
    assert set(pages) == {"nightly", "experiment"}
    monkeypatch.setenv("PREFECT_API_URL", services["prefect_api"])
    monkeypatch.setenv(prefect_secret.CLIENT, str(prefect_secret.kept()))
    code = """
with get_client(sync_client=True) as client:
    made = client.read_deployment_by_name(notifications.NIGHTLY).id
    print(made)
    notifications.champion_changed(None, Version("sample", 7, {"phase": "mid", "arm": "refine"}), "better by 0.1")
    notifications.send_events()
    run = client.create_flow_run_from_deployment(made, name="nightly 2026-11-27")
    client.set_flow_run_state(run.id, State(type="CRASHED", name="Crashed", message="its process is gone"), force=True)
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert pages["nightly"] == f"{services['prefect']}/deployments/deployment/{done.stdout.strip()}"
    assert wait_for(lambda: len(received) >= 2, 60), received
    nightly, champion = sorted(received)
    assert "sample: version 7 (mid refine) is champion (before: none)\nbetter by 0.1" in champion
    assert "nightly 2026-11-27: Crashed\nits process is gone\n" in nightly
    assert f"{services['prefect']}/runs/flow-run/" in nightly
