"""Defaults for Prefect and MLflow never replace what the user has set."""

from __future__ import annotations

import os

import pytest

from refine.services import environment


@pytest.fixture
def variables(home, monkeypatch):
    """No variable of ours is set, and none stays set after the test."""
    for name in {*environment.MLFLOW, *environment.PREFECT, *environment.OTHERS, *environment.QUIET, "PREFECT_HOME"}:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def test_a_users_value_goes_first(variables):
    variables.setenv("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "60")
    assert environment.variables()["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "60"
    environment.prepare()
    assert os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "60" and os.environ["DO_NOT_TRACK"] == "true"


def test_only_a_quiet_flow_keeps_prefects_log_off_the_console(variables):
    (name,) = environment.QUIET
    environment.prepare()
    assert name not in os.environ
    environment.prepare(quiet=True)
    assert os.environ[name] == "CRITICAL"


def test_prefects_files_are_in_the_home_unless_a_server_is_named(variables, home):
    variables.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    environment.prepare()
    assert "PREFECT_HOME" not in os.environ
    variables.delenv("PREFECT_API_URL")
    environment.prepare()
    assert os.environ["PREFECT_HOME"] == str(home / "services" / "prefect") and (home / "services" / "prefect").is_dir()
