"""A database that a server cannot use is one line before the server is started, without its password."""

from __future__ import annotations

import importlib.util

import pytest

from refine.errors import ServiceError, SettingError
from refine.services import databases


@pytest.mark.parametrize(
    ("url", "server", "error", "message"),
    [
        ("no address", "prefect", SettingError, r"expected postgresql\+asyncpg://USER:PASSWORD@HOST:PORT/DATABASE"),
        ("postgresql+pg8000://me:secret@db/x", "prefect", SettingError, r"begin with postgresql\+asyncpg"),
        ("postgresql+asyncpg://me:secret@db/x", "mlflow", SettingError, r"begin with postgresql\+pg8000"),
        ("mysql://me:secret@db/x", "mlflow", SettingError, "begin with"),
        ("postgresql+asyncpg://me:secret@127.0.0.1:9/x", "prefect", ServiceError, "127.0.0.1:9/x cannot be used: "),
    ],
)
def test_what_cannot_be_used_is_one_line_that_names_the_option(url, server, error, message):
    with pytest.raises(error, match=message) as found:
        databases.check(url, server)
    said = str(found.value)
    assert f"--{server}-database" in said and "secret" not in said and "\n" not in said


def test_a_missing_driver_says_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "pg8000" else found(name, *more)
    )
    with pytest.raises(SettingError, match=r"pg8000 is not installed; pip install -e '\.\[team\]'"):
        databases.check("postgresql+pg8000://me:secret@127.0.0.1:9/x", "mlflow")


def test_sqlite_needs_no_asking(tmp_path):
    databases.check(f"sqlite:///{tmp_path}/mlflow.db", "mlflow")
