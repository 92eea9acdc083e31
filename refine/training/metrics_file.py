"""OUTPUT/metrics.jsonl: every row of metrics that a training logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from refine.system.files import write_text

SERIES = "metrics.jsonl"


class Series(TrainerCallback):
    """Keeps OUTPUT/metrics.jsonl, one JSON object a logged row, in step with training.

    A resumed run first rewrites it to what its checkpoint knew, so no step is there twice and none is missing.
    """

    def __init__(self, output: Path) -> None:
        self.path = output / SERIES

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the file anew, with the rows up to the step that training goes on from."""
        if state.is_world_process_zero:
            write_text(self.path, "".join(_line(row) for row in state.log_history))

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Append the row that was just logged."""
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(state.log_history[-1]))


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"
