"""`refine worker` checks what it needs before it waits for runs; each refusal is one line."""

from __future__ import annotations

import os

import pytest

from refine.errors import ServiceError, SettingError
from refine.services import checkout, prefect_api, worker


@pytest.fixture
def place(home, monkeypatch, request):
    """The project's folder, without configured servers."""
    monkeypatch.chdir(request.getfixturevalue("checkout"))
    monkeypatch.delenv(checkout.VARIABLE, raising=False)


def test_it_must_start_in_a_checkout(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match="is not the project's folder on this machine"):
        worker.serve("gpu")


def test_servers_must_be_configured_and_answer(place, monkeypatch):
    with pytest.raises(
        ServiceError, match="no Prefect server runs: start one with `refine up`, or set PREFECT_API_URL"
    ):
        worker.serve("gpu")
    monkeypatch.setenv("PREFECT_API_URL", "http://me:secret@127.0.0.1:9/api")
    with pytest.raises(ServiceError, match="does not answer") as error:
        worker.serve("gpu")
    assert "secret" not in str(error.value)
    monkeypatch.setattr(prefect_api, "check_answers", lambda url: None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ServiceError, match=r"MLflow server http://127\.0\.0\.1:9 does not answer"):
        worker.serve("gpu")
    assert os.environ.get(checkout.VARIABLE) is None
