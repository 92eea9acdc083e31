"""One run of one phase: from a model and its data to OUTPUT/model and a record. A run that is killed resumes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback

from refine.errors import TrainingError
from refine.identity import code_hash, data_version, git_state, hash_of
from refine.phases import run_folder
from refine.phases.card import CARD, card_of
from refine.settings.training import Freeze
from refine.system.exhausted import out_of_memory_in_one_line
from refine.system.files import write_text
from refine.system.quiet import no_progress_bars
from refine.training import checkpoints
from refine.training.arguments import RefineArguments
from refine.training.distributed import decided_by_first, gathered
from refine.training.freezing import check_freeze
from refine.training.metrics_file import MetricsFile
from refine.training.progress import ProgressBar
from refine.training.reward_histograms import RewardHistograms
from refine.training.trainer import RefineTrainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """What a run trains with. model: builds the starting model. train, validation: rows of tokens, or of prompts with
    answers; the first of several named validation sets chooses the best checkpoint. tokenizer: saved with the model."""

    model: Callable[[], PreTrainedModel]
    train: Any
    validation: Any
    tokenizer: Any


@no_progress_bars()
def run(
    title: str,
    data: TrainingData,
    arguments: RefineArguments,
    identity: dict[str, Any],
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
    early_stop_after: int | None = None,
) -> dict[str, Any]:
    """Train into `folder`, which `run_folder.check` has passed, or resume from its last complete checkpoint.

    `identity`: settings and hashes of the inputs (JSON values). `callbacks`: trackers, handed in from above.
    `early_stop_after`: validations in a row without a lower loss that end the run. Returns the record in
    folder/result.json; a finished run is left as it is.
    Raises TrainingError: another process trains into the folder, or training failed.
    """
    # process 0 decides: the others may look before or after another run has finished
    if (record := decided_by_first(lambda: run_folder.finished(folder))) is not None:
        return record
    if isinstance(data.validation, dict):  # Trainer's names have the set's in front; the first decides
        arguments.metric_for_best_model = f"{next(iter(data.validation))}_{arguments.metric_for_best_model}"
    model = _built(data, arguments, f"training.{identity['phase']}.freeze", folder)
    with (
        checkpoints.disk_errors_in_one_line(folder),
        run_folder.locked(folder) if arguments.should_save else contextlib.nullcontext(),
    ):
        # All processes follow process 0: another run may have finished while process 0 waited for the lock.
        if (record := gathered(run_folder.finished(folder))[0]) is not None:
            return record
        if arguments.should_save:
            run_folder.write_identity(folder, identity)
            checkpoints.clean(folder)
        gathered(None)  # wait for process 0
        own = [MetricsFile(folder), RewardHistograms(folder), ProgressBar(title), *_patience(early_stop_after)]
        trainer = RefineTrainer(
            model=model,
            args=arguments,
            train_dataset=data.train,
            eval_dataset=data.validation,
            processing_class=data.tokenizer,
            callbacks=[*own, *callbacks],
        )
        if arguments.max_steps == 0:
            _only_validate(trainer)
        else:
            trainer.train(resume_from_checkpoint=True)
        trainer.save_complete(folder / run_folder.MODEL)
        record = {
            **identity,
            "identity_hash": hash_of(run_folder.without_execution_settings(identity)),
            **_outcome(trainer),
            "origin": _origin(),
        }
        if trainer.args.should_save:
            of_model = {**record, "model": trainer.model.config.to_dict()}
            write_text(folder / run_folder.MODEL / CARD, card_of(of_model, trainer.model.name_or_path or ""))
            record = run_folder.write_result(folder, record)
        return gathered(record)[0]  # of process 0, which wrote it


def _origin() -> dict[str, Any]:
    """The code and the raw data of this run, for those who register its model."""
    commit, dirty = git_state()
    return {"commit": commit, "dirty": dirty, "data": data_version(), "code": code_hash()}


def _patience(validations: int | None) -> list[TrainerCallback]:
    return [] if validations is None else [EarlyStoppingCallback(early_stopping_patience=validations)]


def _built(data: TrainingData, arguments: RefineArguments, freeze: str, folder: Path) -> PreTrainedModel:
    """The starting model. If it cannot be built or trained (setting `freeze`), the empty output folder is removed."""
    try:
        with out_of_memory_in_one_line(
            TrainingError, "while the starting model is built", "a smaller model, or a larger machine"
        ):
            model = data.model()
        check_freeze(model, cast(Freeze, arguments.freeze), freeze)
        return model
    except Exception:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise


def _only_validate(trainer: RefineTrainer) -> None:
    """Arm `none`: no training, but the same validation and records as the other arms."""
    handler = trainer.callback_handler
    trainer.control = handler.on_train_begin(trainer.args, trainer.state, trainer.control)
    trainer.share_model()
    trainer.evaluate()
    trainer.control = handler.on_train_end(trainer.args, trainer.state, trainer.control)


def _outcome(trainer: RefineTrainer) -> dict[str, Any]:
    """Steps, tokens and seconds of all attempts together, and the last value of every metric. If the best checkpoint
    is the result, later values do not count."""
    rows, state = trainer.state.log_history, trainer.state
    kept = state.best_global_step if trainer.args.load_best_model_at_end and state.best_model_checkpoint else None
    of_model = [row for row in rows if kept is None or row["step"] <= kept]
    last = {
        name: value for row in of_model for name, value in row.items() if "/" in name and isinstance(value, int | float)
    }
    return {
        "steps": state.global_step,
        "tokens": round(sum(row.get("train/tokens", 0) for row in rows)),
        "best_step": state.best_global_step,
        "seconds": round(sum(row.get("train/seconds", 0.0) for row in rows), 3),
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "metrics": last,
    }
