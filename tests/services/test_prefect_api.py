"""A flow uses the Prefect API in PREFECT_API_URL, that of `refine up`, or a temporary server (temporary_prefect.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
import pytest

from refine.errors import ServiceError
from refine.services import prefect_api
from refine.system.addresses import basic
from refine.system.local_services import state_file


def post(url: str, values: dict):
    """The answer of Prefect's server. While its database is busy it answers 503: ask again, as its client does."""
    for _ in range(20):
        try:
            return _post(url, values)
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            time.sleep(1)
    return _post(url, values)


def _post(url: str, values: dict):
    body = json.dumps(values).encode()
    secret = basic(os.environ["PREFECT_API_AUTH_STRING"])
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", "Authorization": secret})
    with urllib.request.urlopen(request) as response:
        return json.load(response) if response.status != 204 else None


def scheduled(url: str) -> list[dict]:
    """The runs that Prefect's server schedules for a deployment with a cron."""
    flow = post(f"{url}/flows/", {"name": "any"})
    nightly = {"active": True, "schedule": {"cron": "0 2 * * *", "timezone": "UTC"}}
    made = post(f"{url}/deployments/", {"name": "nightly", "flow_id": flow["id"], "schedules": [nightly]})
    post(f"{url}/deployments/{made['id']}/schedule", {})
    return post(f"{url}/flow_runs/filter", {"deployments": {"id": {"any_": [made["id"]]}}})


def test_a_temporary_server_answers_schedules_and_is_gone_afterwards(home):
    with prefect_api.prefect_api() as url:
        assert os.environ["PREFECT_API_URL"] == url
        prefect_api.wait_until_ready(url)
        assert prefect_api.answers(url)
        assert [run["state_type"] for run in scheduled(url)][:2] == ["SCHEDULED"] * 2, "does it fit this SQLAlchemy?"
    assert not prefect_api.answers(url) and "PREFECT_API_URL" not in os.environ


def test_a_configured_server_that_does_not_answer_is_one_line(home, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://me:secret@127.0.0.1:9/api")
    named = prefect_api.prefect_api()
    with pytest.raises(ServiceError, match=r"Prefect server http://127\.0\.0\.1:9/api does not answer") as error, named:
        pass
    assert "secret" not in str(error.value)


def test_a_recorded_server_that_is_gone_is_ignored(home):
    state_file().parent.mkdir(parents=True)
    state_file().write_text(json.dumps({"prefect_api": "http://127.0.0.1:9/api"}))
    assert prefect_api.running_server() is None


def test_the_server_does_not_outlive_a_killed_flow(home):
    code = (
        "import time\nfrom refine.services import prefect_api\n"
        "with prefect_api.prefect_api() as url:\n    print(url, flush=True)\n    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    (server,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert not psutil.wait_procs([server], timeout=10)[1]
