"""`refine deploy` refuses what cannot run before it registers anything: one line each."""

from __future__ import annotations

from types import SimpleNamespace

import prefect.client.orchestration
import pytest
from click.testing import CliRunner

from refine.cli import deploy
from refine.cli.main import cli
from refine.errors import ServiceError, SettingError


@pytest.mark.parametrize(
    ("cron", "timezone"), [("every night", "UTC"), ("0 25 * * *", "UTC"), ("0 2 * * *", "Mars/Olympus")]
)
def test_a_schedule_that_is_none_says_what_one_looks_like(cron, timezone):
    with pytest.raises(SettingError, match=r"minute hour day month weekday, as in '0 2 \* \* \*'") as error:
        deploy.check_schedule(cron, timezone)
    assert cron in str(error.value) and "\n" not in str(error.value)
    deploy.check_schedule("0 2 * * *", "Europe/Berlin")


def test_a_pool_that_is_not_there_is_named_with_those_that_are(monkeypatch):
    class Client:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def read_work_pools(self):
            return [SimpleNamespace(name="gpu"), SimpleNamespace(name="cpu")]

    monkeypatch.setattr(prefect.client.orchestration, "get_client", lambda sync_client: Client())
    deploy.check_pool("gpu")
    with pytest.raises(ServiceError, match=r"no work pool 'gpus' \(did you mean 'gpu'\?\); there are: gpu, cpu"):
        deploy.check_pool("gpus")


def test_without_a_server_it_says_how_to_start_one(tmp_path, monkeypatch, checkout):
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("REFINE_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    result = CliRunner().invoke(cli, ["deploy"])
    assert isinstance(result.exception, ServiceError) and "start one with `refine up`" in str(result.exception)
