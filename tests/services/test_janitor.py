"""The janitor's other half is Prefect's: which runs it takes for running."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from prefect.states import Cancelling, Completed, Pending, Running, Scheduled

from refine.services.janitor import _running

RUNS = [(Running(), True), (Cancelling(), True)]
RUNS_NOT = [(Pending(), False), (Scheduled(), False), (Completed(), False), (None, False)]


@pytest.mark.parametrize(("state", "expected"), RUNS + RUNS_NOT)
def test_only_what_runs_can_have_died(state, expected):
    assert _running(SimpleNamespace(state=state)) is expected
