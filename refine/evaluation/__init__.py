"""Scores with intervals: next-token prediction, needles, multi-document questions, LongBench, lm-eval's tasks.

Names that need torch are imported on first use, so that reading a record imports little.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refine.evaluation.evaluate import evaluate_model
    from refine.evaluation.inputs import Inputs, Sources, load_inputs
    from refine.evaluation.record import Evaluation, TaskScore

__all__ = ["Evaluation", "Inputs", "Sources", "TaskScore", "evaluate_model", "load_inputs"]
HOMES = {
    "evaluate_model": "evaluate",
    "Inputs": "inputs",
    "Sources": "inputs",
    "load_inputs": "inputs",
    "Evaluation": "record",
    "TaskScore": "record",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
