"""OUTPUT/metrics.jsonl: every row of metrics that a training run logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from refine.metric_names import METRICS_FILE
from refine.system.files import write_text


class MetricsFile(TrainerCallback):
    """Writes OUTPUT/metrics.jsonl, one JSON object per logged row.

    A resumed run first rewrites it with the rows of its checkpoint, so no step is missing or there twice.
    """

    def __init__(self, output: Path) -> None:
        self.path = output / METRICS_FILE

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the rows up to the step that training starts from."""
        if state.is_world_process_zero:
            write_text(self.path, "".join(_line(row) for row in state.log_history))

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Append the row that was just logged."""
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(state.log_history[-1]))


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
