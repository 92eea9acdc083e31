"""A user's training script with MlflowCallback. Tests import it, and run it as a process that dies.

python recorded_training.py OUTPUT: trains in OUTPUT, and kills itself after step 5 (its checkpoint is of step 4).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from refine.models import from_config
from refine.tracking.connection import connect, experiment_id
from refine.tracking.mlflow_callback import MlflowCallback
from refine.tracking.run import open_run
from refine.training.arguments import RefineArguments
from refine.training.trainer import RefineTrainer

CONFIG = {"model_type": "delta_net", "hidden_size": 8, "num_hidden_layers": 1, "num_heads": 1, "vocab_size": 32}
ROWS = [{"tokens": [(7 * place * place + 3 * row) % 32 for place in range(24)]} for row in range(6)]


class At(TrainerCallback):
    """Calls `action` at the end of step `step`."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.global_step == self.step and "train/loss" in logs:
            self.action()


def train(
    client: Any, output: Path, others: Sequence[TrainerCallback] = (), steps: int = 8, **options: Any
) -> tuple[RefineTrainer, str]:
    """Train `steps` steps, or resume from the last checkpoint. Returns the trainer and the id of the MLflow run."""
    torch.manual_seed(0)
    args = RefineArguments(
        output_dir=str(output),
        max_steps=steps,
        sequences_per_step=2,
        per_device_train_batch_size=2,
        disable_tqdm=True,
        objective={"positions": 2, "rollout_length": 2, "min_prefix": 4},
        learning_rate=1e-2,
        use_cpu=True,
        save_strategy="steps",
        save_steps=4,
        eval_strategy="steps",
        eval_steps=4,
    )
    with open_run(client, experiment_id(client, "sample"), "script", key=str(output)) as run:
        callbacks = [MlflowCallback(run, **{"every": 0.05, **options}), *others]
        trainer = RefineTrainer(from_config(CONFIG), args, ROWS, ROWS[:2], callbacks=callbacks)
        trainer.train(resume_from_checkpoint=True)
    return trainer, run.run_id


def _die() -> None:
    time.sleep(0.5)  # until what is logged was sent
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(connect(), Path(sys.argv[1]), [At(5, _die)])
