"""A request to a server that does not answer is repeated for a while, and no longer."""

from __future__ import annotations

import pytest

from refine.system import retries
from refine.system.retries import patiently


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Pauses of milliseconds."""
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(retries, "PATIENCE", 0.2)


def failing(times: int, error: Exception):
    """An action that fails `times` times, then returns how often it was called."""
    asked = []

    def action() -> int:
        asked.append(None)
        if len(asked) <= times:
            raise error
        return len(asked)

    return action


def test_an_error_that_may_pass_is_tried_again():
    assert patiently(failing(3, ConnectionError("away")), lambda error: True, "the store") == 4


def test_any_other_error_is_raised_at_once():
    with pytest.raises(PermissionError):
        patiently(failing(1, PermissionError("no")), lambda error: isinstance(error, ConnectionError), "the store")


def test_patience_ends_with_the_last_error(caplog):
    with pytest.raises(ConnectionError, match="away"):
        patiently(failing(10**6, ConnectionError("away")), lambda error: True, "the store")
    assert "the store: ConnectionError: away; trying again" in caplog.text
