"""An empty $REFINE_HOME, and services on free ports."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def home(bare_home, monkeypatch) -> Path:
    """$REFINE_HOME in tmp_path, without configured servers."""
    for name in ("PREFECT_API_URL", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)
    return bare_home


@pytest.fixture
def services(home):
    """`refine up` on free ports; the addresses. `refine down` always follows."""
    from refine.services import up
    from refine.services.prefect_api import free_port

    try:
        yield up.up(up.UpOptions(prefect_port=free_port(), mlflow_port=free_port()))
    finally:
        up.down()
