"""One run of one phase: from a model and sequences to OUTPUT/model and a record, through any number of deaths."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback

from refine.identity import hash_of
from refine.phases import run_folder
from refine.system.files import write_json
from refine.system.quiet import no_progress_bars
from refine.training import checkpoints
from refine.training.arguments import RefineArguments
from refine.training.distributed import gathered
from refine.training.metrics_file import MetricsFile
from refine.training.progress import ProgressBar
from refine.training.reward_histograms import RewardHistograms
from refine.training.trainer import RefineTrainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """What a run trains with: `model` builds the starting model, the rest are rows of tokens and their tokenizer."""

    model: Callable[[], PreTrainedModel]
    train: Any
    validation: Any
    tokenizer: Any


@no_progress_bars()
def run(
    title: str,
    inputs: Inputs,
    arguments: RefineArguments,
    identity: dict[str, Any],
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
    early_stop_after: int | None = None,
) -> dict[str, Any]:
    """Train into `folder` (see `refine.phases.run_folder`), or go on from its last whole checkpoint.

    `identity`: settings and hashes of the inputs (JSON values). `callbacks`: trackers, handed in from above.
    `early_stop_after`: validations in a row without a lower loss that end the run. Returns the record that is in
    folder/result.json; a finished run is not touched and returns its record.
    Raises TrainingError: the folder is another run's, or training failed; SettingError: it cannot be written to.
    """
    run_folder.check(folder, identity)
    if (record := run_folder.finished(folder)) is not None:
        return record
    model = _built(inputs, folder)
    with (
        checkpoints.told_in_words(folder),
        run_folder.locked(folder) if arguments.should_save else contextlib.nullcontext(),
    ):
        # What process 0 finds holds for all: another run may have finished while it waited for the lock.
        if (record := gathered(run_folder.finished(folder))[0]) is not None:
            return record
        if arguments.should_save:
            run_folder.claim(folder, identity)
            checkpoints.clean(folder)
        gathered(None)  # wait for it
        trainer = RefineTrainer(
            model=model,
            args=arguments,
            train_dataset=inputs.train,
            eval_dataset=inputs.validation,
            processing_class=inputs.tokenizer,
            callbacks=[
                MetricsFile(folder),
                RewardHistograms(folder),
                ProgressBar(title),
                *_patience(early_stop_after),
                *callbacks,
            ],
        )
        if arguments.max_steps == 0:
            _only_validate(trainer)
        else:
            trainer.train(resume_from_checkpoint=True)
        trainer.save_whole(folder / run_folder.MODEL)
        record = {**identity, "identity_hash": hash_of(run_folder.decisive(identity)), **_outcome(trainer)}
        if trainer.args.should_save:
            write_json(folder / run_folder.RESULT, record)
        trainer.accelerator.wait_for_everyone()
        return record


def _patience(validations: int | None) -> list[TrainerCallback]:
    return [] if validations is None else [EarlyStoppingCallback(early_stopping_patience=validations)]


def _built(inputs: Inputs, folder: Path) -> PreTrainedModel:
    """The starting model; where there is none, no empty folder stays behind."""
    try:
        return inputs.model()
    except Exception:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise


def _only_validate(trainer: RefineTrainer) -> None:
    """Arm `none`: the model as it is, with the same validation and records as the others."""
    handler = trainer.callback_handler
    trainer.control = handler.on_train_begin(trainer.args, trainer.state, trainer.control)
    trainer.evaluate()
    trainer.control = handler.on_train_end(trainer.args, trainer.state, trainer.control)


def _outcome(trainer: RefineTrainer) -> dict[str, Any]:
    """Steps, tokens and seconds of all attempts that made the model, and the last value of every metric: that of the
    best checkpoint where it is the result."""
    rows, state = trainer.state.log_history, trainer.state
    kept = state.best_global_step if trainer.args.load_best_model_at_end and state.best_model_checkpoint else None
    of_model = [row for row in rows if kept is None or row["step"] <= kept]
    last = {
        name: value for row in of_model for name, value in row.items() if "/" in name and not isinstance(value, list)
    }
    return {
        "steps": state.global_step,
        "tokens": round(sum(row.get("train/tokens", 0) for row in rows)),
        "best_step": state.best_global_step,
        "seconds": round(sum(row.get("train/seconds", 0.0) for row in rows), 3),
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "metrics": last,
    }
