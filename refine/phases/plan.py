"""A training run before it starts: checked and hashed, with nothing heavy imported yet.

A command goes this way: `plan(settings, ...)` of a phase checks the inputs, `run_folder.check(output, plan.identity)`
checks the folder, `torchrun.become` starts the processes, `plan.run(output)` trains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refine.phases import run_folder

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from refine.phases.run import TrainingData
    from refine.training.arguments import RefineArguments


@dataclass(frozen=True)
class Plan:
    """What `plan` of a phase returns.

    title: phase and arm, as in `mid refine`. identity: the settings and the hashes of the inputs that decide the model
    (JSON values). prepare: loads the data and builds the trainer's arguments for an output folder.
    early_stop_after: validations in a row without a lower loss that end the run.
    """

    title: str
    identity: dict[str, Any]
    prepare: Callable[[Path], tuple[RefineArguments, TrainingData]]
    early_stop_after: int | None = None

    def run(self, output: Path, callbacks: Sequence[TrainerCallback] = ()) -> dict[str, Any]:
        """Train into `output`, or resume there; returns the record (see `refine.phases.run.run`).

        Raises SettingError: `output` cannot be written to. TrainingError: it holds another run, or training failed.
        """
        run_folder.check(output, self.identity)
        from refine.phases.run import run

        arguments, data = self.prepare(output)
        return run(self.title, data, arguments, self.identity, output, callbacks, self.early_stop_after)
