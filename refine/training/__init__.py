"""Training by next-token and next-sequence prediction: RefineTrainer, the phases, and test-time training.

What needs torch is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refine.training.arguments import RefineArguments
    from refine.training.test_time import adapted
    from refine.training.trainer import RefineTrainer

__all__ = ["RefineArguments", "RefineTrainer", "adapted"]
HOMES = {"RefineArguments": "arguments", "RefineTrainer": "trainer", "adapted": "test_time"}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
