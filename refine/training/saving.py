"""How RefineTrainer saves and resumes: checkpoints are complete or ignored, and loading one runs no code in it."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.constants import FSDP_MODEL_NAME
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerState

from refine.errors import TrainingError, reason
from refine.models.weights import weight_files
from refine.system.quiet import no_progress_bars
from refine.system.readers import in_form, read_json
from refine.training import checkpoints, sharded
from refine.training.adapters import ADAPTER, has_adapters
from refine.training.arguments import RefineArguments
from refine.training.distributed import decided_by_first, gathered

STATE: dict[str, Any] = {"global_step": int, "max_steps": int, "epoch": float | int | None, "log_history": list}
PATIENCE = 120.0  # seconds until a process must see the checkpoint that process 0 has found
TRAINING_ARGS = "training_args.bin"  # a pickle that Trainer writes beside every model; nothing reads it here


@torch.no_grad()
def refuse_non_finite(model: nn.Module, step: int) -> None:
    """Raise TrainingError if a parameter or buffer of `model` (of a sharded one: the part of this process) is NaN or
    infinite after `step`."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        values = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        if not bool(values.isfinite().all()):
            raise TrainingError(
                f"step {step}: {name} holds {int((~values.isfinite()).sum())} values that are NaN or infinite, so the "
                "model is not saved: lower learning_rate, and start again from the last checkpoint, which is complete"
            )


def _last_step_of(checkpoint: str | bool | None) -> int | None:
    """The number of steps after which the run of `checkpoint` was to end. Raises TrainingError: the folder or Trainer's
    state in it is damaged."""
    folder = Path(str(checkpoint))
    if (folder / checkpoints.MANIFEST).is_file() and (found := checkpoints.damage(folder)):
        raise TrainingError(f"{folder} is incomplete or damaged ({found}): resume from another checkpoint")
    file, what = folder / TRAINER_STATE_NAME, "Trainer's state"
    if not file.is_file():
        return None
    values = read_json(file, what, TrainingError)
    with in_form(file, what, TrainingError, "resume from another checkpoint"):
        for name, kind in STATE.items():
            if not isinstance(values.get(name), kind) or isinstance(values.get(name), bool):
                raise TypeError(f"{name} is {reason(repr(values.get(name)), 40)}")
        return TrainerState.load_from_json(str(file)).max_steps


def _refuse_other_sharding(checkpoint: Path, fsdp: bool) -> None:
    """Raises TrainingError: of the two kinds of whole checkpoints, accelerate goes on from one under FSDP, and from the
    other without."""
    whole = f"{FSDP_MODEL_NAME}.bin"
    if fsdp and not (checkpoint / whole).is_file():
        raise TrainingError(
            f"{checkpoint}: has no {whole}, so that a run with FSDP cannot go on from it: it was written without "
            "(training.sharding: none), or with save_only_model"
        )
    if not fsdp and (checkpoint / whole).is_file():
        raise TrainingError(f"{checkpoint}: was written with FSDP (training.sharding: full): go on with it")


class CompleteCheckpoints(Trainer):
    """Trainer whose checkpoints are complete or ignored (`refine.training.checkpoints`).

    A checkpoint holds the weights (safetensors), optimizer, scheduler, scaler and random generators of each process
    (loaded with `weights_only`), and Trainer's state with the metrics so far. Of a large model that processes share,
    each writes its part of weights and optimizer (`refine.training.sharded`). `save_total_limit` keeps the latest
    checkpoints and the best one.
    """

    args: RefineArguments
    model: PreTrainedModel
    optimizer: Any
    lr_scheduler: Any
    _ended_at: int | None = None

    @property
    def output(self) -> Path:
        """The folder of the checkpoints."""
        return Path(self.args.output_dir or ".")

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trainer's. True resumes from the last complete checkpoint, or starts if there is none; process 0 decides.
        Raises ModelError or TrainingError: a checkpoint has pickled weights or objects."""
        wish = resume_from_checkpoint
        resume_from_checkpoint, self._ended_at, listed = decided_by_first(lambda: self._resumed_from(wish))
        if listed and self.args.process_index:
            checkpoints.wait_until_complete(Path(str(resume_from_checkpoint)), PATIENCE)
        shards = isinstance(resume_from_checkpoint, str) and checkpoints.is_sharded(Path(resume_from_checkpoint))
        if isinstance(resume_from_checkpoint, str) and not shards:
            self._check_whole(Path(resume_from_checkpoint))
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        except pickle.UnpicklingError as error:
            raise TrainingError(
                f"{resume_from_checkpoint}: holds pickled objects, which are never loaded ({reason(error, 100)})"
            ) from None

    def _check_whole(self, checkpoint: Path) -> None:
        """Raises ModelError or TrainingError: this run cannot go on from `checkpoint`, which is in one part."""
        _refuse_other_sharding(checkpoint, self.is_fsdp_enabled)
        if self.is_fsdp_enabled:
            return
        if not has_adapters(self.model):
            weight_files(checkpoint)
        elif not (checkpoint / ADAPTER).is_file():
            raise TrainingError(f"{checkpoint}: has no {ADAPTER}: it is no checkpoint of adapters")

    def _resumed_from(self, wish: str | bool | None) -> tuple[str | bool | None, int | None, bool]:
        """The checkpoint that `train` goes on from, the number of steps after which its run was to end, and whether the
        checkpoint lists its files."""
        if wish is True:
            found = checkpoints.last_complete(self.output)
            wish = None if found is None else str(found)
        return wish, _last_step_of(wish), (Path(str(wish)) / checkpoints.MANIFEST).is_file()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Trainer's. In several processes on the CPU the device is "cpu:0", which transformers before 5.23 gives to
        torch.load, and which torch.load does not know. Shards by `refine.training.sharded`."""
        folder = None if checkpoint is None else Path(checkpoint)
        if folder is not None and checkpoints.is_sharded(folder):
            if (folder / SCHEDULER_NAME).is_file():  # else it holds only the model
                sharded.load(folder, self.model, self._optimizer())
                self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))
            return
        device, kept = self.args.device, self.args.__dict__
        kept["_setup_devices"] = torch.device("cpu") if device.type == "cpu" else device
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        finally:
            kept["_setup_devices"] = device

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Trainer's. Also remembers whether the checkpoint's run had already stopped early (and was killed before it
        saved its model)."""
        progress = super()._init_training_state(*args, **kwargs)
        step, wanted = self.state.global_step, self.state.max_steps
        if step > wanted:
            raise TrainingError(f"the checkpoint is of step {step}, and max_steps is {wanted}: raise max_steps")
        if self._ended_at == step < wanted:  # that run was complete; this one asks for more steps
            self.control.should_training_stop = False
        self._had_stopped = step > 0 and self.control.should_training_stop
        return progress

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's, unless the run had already stopped."""
        if self._had_stopped:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Replaces Trainer's, which writes files into the final folder one by one."""
        folder = self.output / f"{checkpoints.PREFIX}{self.state.global_step}"
        self.store_flos()
        known: checkpoints.Listed = {}
        with self._together(folder, known) as staging:
            if self._is_large():
                self._save_shards(staging, known)
            else:
                self.save_model(str(staging), _internal_call=True)
            if not self.args.save_only_model:
                if not self._is_large():
                    self._save_optimizer_and_scheduler(str(staging))
                self._save_scaler(str(staging))
                self._save_rng_state(str(staging))
            self._name_best_checkpoint(folder)
            if self.args.should_save:
                self._export_callbacks()
                self.state.save_to_json(str(staging / TRAINER_STATE_NAME))
        if self.args.should_save and self.args.save_total_limit:
            best = self.state.best_model_checkpoint
            checkpoints.prune(self.output, self.args.save_total_limit, None if best is None else Path(best))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Trainer's. Raises TrainingError, before anything is written, if a weight is NaN or infinite."""
        assert self.model is not None
        refuse_non_finite(self.model, self.state.global_step)
        super().save_model(output_dir, _internal_call)

    def _is_large(self) -> bool:
        """Whether each process writes its part of a checkpoint: the processes share the model, and it is large."""
        if not self.is_fsdp_enabled or not self.accelerator.is_fsdp2 or has_adapters(self.model):
            return False
        return sharded.parameter_bytes(self.model) > self.args.shard_checkpoints_above * 1e9

    def _save_shards(self, staging: Path, known: checkpoints.Listed) -> None:
        """Parameters and optimizer by `refine.training.sharded`; process 0 writes config, tokenizer and schedule.
        Raises TrainingError, before anything is written, if a weight is NaN or infinite."""
        refuse_non_finite(self.model, self.state.global_step)
        if self.args.should_save:
            self.model.config.save_pretrained(str(staging))
            if self.processing_class is not None:
                self.processing_class.save_pretrained(str(staging))
            if not self.args.save_only_model:
                torch.save(self.lr_scheduler.state_dict(), staging / SCHEDULER_NAME)
        own = sharded.save(staging, self.model, None if self.args.save_only_model else self._optimizer())
        for listed in gathered(own):
            known.update(listed)

    def _optimizer(self) -> torch.optim.Optimizer:
        """The optimizer itself; accelerate's wrapper may skip its steps."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Trainer's; shards by `refine.training.sharded`."""
        if checkpoints.is_sharded(Path(resume_from_checkpoint)):
            sharded.load(Path(resume_from_checkpoint), self.model)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """Trainer's; shards by `refine.training.sharded`."""
        best = Path(str(self.state.best_model_checkpoint))
        if checkpoints.is_sharded(best):
            sharded.load(best, self.model)
        else:
            super()._load_best_model()

    def save_complete(self, folder: Path) -> None:
        """Save the model and its tokenizer to `folder`, complete or not at all."""
        with self._together(folder) as staging:
            self.save_model(str(staging), _internal_call=True)

    @contextlib.contextmanager
    def _together(self, folder: Path, known: checkpoints.Listed | None = None) -> Iterator[Path]:
        """One staging folder for all processes. It is renamed after the last process has written. `known`: see
        `checkpoints.written_completely`."""
        with checkpoints.written_completely(folder, known) if self.args.should_save else contextlib.nullcontext():
            self.accelerator.wait_for_everyone()
            yield checkpoints.staging_of(folder)
            self.accelerator.wait_for_everyone()
        self.accelerator.wait_for_everyone()

    def _name_best_checkpoint(self, folder: Path) -> None:
        best = self.state.best_global_step
        if not best:
            return
        best_folder = folder.with_name(f"{checkpoints.PREFIX}{best}")
        if best_folder == folder or best_folder.is_dir():
            self.state.best_model_checkpoint = str(best_folder)

    def _export_callbacks(self) -> None:
        """Put the states of callbacks into Trainer's state, in Trainer's own format."""
        exported: dict[str, list[Any]] = {}
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                exported.setdefault(callback.__class__.__name__, []).append(callback.state())
        found: Any = {name: states[0] if len(states) == 1 else states for name, states in exported.items()}
        self.state.stateful_callbacks = found

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        with no_progress_bars():  # transformers shows one for each file
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            with contextlib.suppress(FileNotFoundError):
                os.remove(Path(output_dir or self.output) / TRAINING_ARGS)
