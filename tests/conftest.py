"""Shared ground of the tests: one thread a worker, no telemetry, and the markers that depend on the machine."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CHECKOUT = Path(__file__).resolve().parent.parent
SHARED = CHECKOUT.parent / "shared" / "data"


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _has_fla() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("fla", "triton"))


REASONS = {
    "requires_cuda": (_has_cuda, "needs a CUDA device"),
    "requires_fla": (_has_fla, "needs flash-linear-attention and triton"),
    "requires_shared": (SHARED.is_dir, "needs the real evaluation files beside the checkout"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run."""
    for name, (available, reason) in REASONS.items():
        marked = [item for item in items if item.get_closest_marker(name)]
        if marked and not available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The project's folder."""
    return CHECKOUT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real evaluation files; tests that use it are marked requires_shared."""
    return SHARED
