"""transformers.Trainer with a REFINE step as its loss.

Trainer does the rest: optimizer, schedules, mixed precision, gradient accumulation and checkpointing, DDP and FSDP
through accelerate, callbacks. Besides the loss, this package replaces the order of the data and the seed of each
sequence (`refine.training.order`), the denominators (they count the whole optimizer step), the writing of checkpoints
(complete or ignored, `refine.training.saving`), and the names of metrics (`train/...`, `val/...`).
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import time
from collections.abc import Iterator, Sequence, Sized
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from refine.data.tokenizer import by_our_rule
from refine.errors import ModelError, SettingError
from refine.models.mixture import take_counts
from refine.objective.external_rewards import ExternalReward, Function, check_reward, external_reward
from refine.objective.result import StepResult
from refine.settings.base import validated
from refine.settings.objective import ObjectiveSettings
from refine.settings.training import Freeze
from refine.system.exhausted import is_out_of_memory
from refine.training import step_errors
from refine.training.adapters import with_adapters
from refine.training.arguments import RefineArguments
from refine.training.dataset import Batches, collate, rows_of, stream_of
from refine.training.distributed import call_through
from refine.training.freezing import freeze
from refine.training.logged_validation import LoggedValidation, vocabulary
from refine.training.losses import AnswerResult, pass_loss
from refine.training.order import Passes, refuse_other_rows, sequence_seed
from refine.training.progress import ProgressBar
from refine.training.saving import CompleteCheckpoints
from refine.training.statistics import Counts, counts_of

log = logging.getLogger(__name__)
OBJECTIVE, FREEZE = "RefineArguments.objective", "RefineArguments.freeze"


class RefineTrainer(LoggedValidation, CompleteCheckpoints, Trainer):
    """Train a fast-weight language model by next-sequence prediction.

    `model`: a model of `refine.models`, or the folder or hub name of a checkpoint. `args`: RefineArguments.
    `train_dataset`, `eval_dataset` (also a dict of names and data sets): rows by index with a `tokens` or a `text`
    column, or with `prompt` and `answers` (trained by cross-entropy of the answers; with `args.prompt_steps`, REFINE
    steps on the prompts come first); see `refine.training.dataset`. `processing_class`: the tokenizer, required for
    text and prompts, and saved with the model. `reward`: optimised in the place of
    `args.objective.reward`: a name, or a function (`refine.objective.external_rewards`). The other
    arguments are those of transformers.Trainer. `peft_config`: trains adapters alone (`refine.training.adapters`).

    Each optimizer step takes the next `sequences_per_step` rows of the stream. The loss of each pass is its share of
    the step's loss, so results do not depend on micro-batches, accumulation or the number of processes.
    """

    args: RefineArguments
    model: PreTrainedModel
    objective: ObjectiveSettings
    loss_is_scaled_for_ga = True  # losses carry the denominators of the whole step (transformers >= 5.20)

    def __init__(
        self,
        model: PreTrainedModel | str,
        args: RefineArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        reward: Function | str | None = None,
        peft_config: Any = None,
        **more: Any,
    ) -> None:
        args = copy.copy(args) if args is not None else RefineArguments(output_dir="refine-training")
        if not isinstance(args, RefineArguments):
            raise SettingError(f"RefineTrainer takes refine.training.RefineArguments, not {type(args).__name__}")
        if given := [name for name in _OWN if more.pop(name, None) is not None]:
            raise SettingError(f"RefineTrainer makes its own batches, loss and metrics: leave out {', '.join(given)}")
        if isinstance(model, str):
            from refine.models import from_pretrained

            model = from_pretrained(model)
        if not hasattr(model, "read"):
            raise _no_memory(model)
        if getattr(processing_class, "is_fast", False):
            processing_class = by_our_rule(processing_class, "processing_class")  # of text rows and of the saved model
        if peft_config is not None:
            model = cast(PreTrainedModel, with_adapters(model, peft_config, args.seed))
        freeze(model, cast(Freeze, args.freeze), FREEZE)
        args._n_gpu = min(args.n_gpu, 1)  # one device per process (torchrun for more): DataParallel loses memories
        self.rows = None if train_dataset is None else rows_of(train_dataset, processing_class, args, vocabulary(model))
        self.stream = None if self.rows is None else stream_of(self.rows, args)
        if self.rows is not None and self.stream is not None:
            step_errors.check_marks(self.rows.marked, validated(ObjectiveSettings, args.objective, OBJECTIVE))
            # Trainer sees one epoch of `steps` batches; each is an optimizer step, which training_step cuts up.
            args.max_steps, args.gradient_accumulation_steps = self.stream.steps, 1
        use_cache = getattr(model.config, "use_cache", None)
        super().__init__(
            model=model,
            args=args,
            train_dataset=self.rows,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=collate,
            callbacks=callbacks,
            **more,
        )
        if use_cache is not None:
            self.model.config.use_cache = use_cache  # Trainer turns it off; checkpoints keep the user's value
        self._replace_progress_callbacks()
        self.model_accepts_loss_kwargs = True  # as loss_is_scaled_for_ga, for transformers before 5.20
        self.objective, self.reward = self._objective(reward)
        self._warned = False
        self._start_counting()

    def _objective(self, reward: Function | str | None) -> tuple[ObjectiveSettings, ExternalReward | None]:
        """The objective with `reward`, and the reward if it is one from outside, which was called once to try it."""
        objective = validated(ObjectiveSettings, self.args.objective, "RefineArguments.objective")
        if isinstance(reward, str):
            values = {**objective.model_dump(), "reward": reward}
            objective, reward = validated(ObjectiveSettings, values, "RefineTrainer"), None
        found = external_reward(objective, self.processing_class, reward)
        pieces = vocabulary(self.model) or 2
        if isinstance(self.processing_class, Sized):
            pieces = min(pieces, len(self.processing_class))
        check_reward(found, objective, pieces, self.model.config.hidden_size)
        return objective if found is None else objective.model_copy(update={"reward": found.name}), found

    def _start_counting(self) -> None:
        super()._start_counting()
        self._counts, self._step_tokens = Counts(0, 0, 0), 0
        self._step_documents: list[str] = []

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Trainer's, at the beginning of each `train()`. Raises TrainingError: a checkpoint of other steps."""
        self._start_counting()
        progress = super()._init_training_state(*args, **kwargs)
        if self.stream is not None and self.state.global_step:
            refuse_other_rows(self.stream, self.state.global_step, self.state.epoch or 0.0)
        return progress

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's, after which peft gives all adapters gradients."""
        super()._load_from_checkpoint(*args, **kwargs)
        freeze(self.model, cast(Freeze, self.args.freeze), FREEZE)

    def _replace_progress_callbacks(self) -> None:
        """Use ProgressBar instead of Trainer's bar, and print no rows: one has 40 metrics."""
        self.remove_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ProgressBar("training"))

    # -- data ------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """This process's passes, one list per optimizer step. accelerate must not shard it: it would repeat rows."""
        if self.rows is None or self.stream is None:
            raise SettingError("training needs a train_dataset")
        args = self.args
        return torch.utils.data.DataLoader(
            Batches(self.rows),
            batch_sampler=Passes(
                self.stream, args.per_device_train_batch_size, max(args.world_size, 1), args.process_index
            ),
            collate_fn=list,
            num_workers=args.dataloader_num_workers,
            persistent_workers=args.dataloader_persistent_workers,
            generator=torch.Generator(),  # iterating must not advance the global generator
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The next optimizer step, and its next-token count over all passes and processes."""
        self._step_started = time.perf_counter()
        steps = [step for _, step in zip(range(num_batches), epoch_iterator, strict=False)]
        batches = [batch for step in steps for batch in step]
        self._counts = self._step_counts(batches)
        self._step_tokens = self._counts.tokens
        self._step_documents = [name for batch in batches for name in batch["documents"] if batch["counted"]]
        self._warn_of_no_positions()
        # filled on the device: torch.tensor would be a copy to it
        return steps, torch.full((), max(self._counts.ntp_tokens, 1), dtype=torch.int64, device=device)

    def _warn_of_no_positions(self) -> None:
        """Say once that a step has no position. Among rows with marks, rows without any are no surprise."""
        among_marks = self.objective.selection == "marked" and self.rows is not None and self.rows.marked
        if self._warned or among_marks or self.args.process_index or not self._counts.lacks_positions(self.objective):
            return
        self._warned = True
        log.warning("step %d: %s", self.state.global_step + 1, step_errors.no_positions(self.objective))

    def _track_num_input_tokens(self, inputs: Any) -> None:
        if self.args.include_num_input_tokens_seen != "no":
            self.state.num_input_tokens_seen += self._step_tokens

    # -- the step --------------------------------------------------------------------------------------------------

    def run_pass(
        self,
        batch: dict[str, Any],
        objective: ObjectiveSettings,
        seeds: Sequence[int],
        counts: Counts,
        model: Any = None,
    ) -> StepResult | AnswerResult:
        """`pass_loss` of `batch` under autocast and inside the forward pass of the model's wrapper (DDP, FSDP).

        `batch`: from `refine.training.dataset.collate`, on the model's device. `seeds`: one per row. `counts`: the
        denominators of the optimizer step or validation that the pass is part of. `model`: the trainer's by default.
        Raises ModelError: `model` is no model of refine.models, nor a wrapper of one.
        """
        model = self._current_model() if model is None else model
        unwrapped = self.accelerator.unwrap_model(model)
        if not hasattr(unwrapped, "read"):
            raise _no_memory(unwrapped)
        with self.accelerator.autocast():
            return call_through(
                model,
                unwrapped,
                lambda module: pass_loss(module, batch, objective, torch.tensor(seeds), counts, self.reward),
            )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This pass's share of the step's loss, times the number of processes (their gradients are averaged). Outside
        of a step of `train()`: the loss of this batch alone.

        `model`: the trainer's, another model of refine.models, or a wrapper of one. Only the trainer's enters the
        logged metrics. Raises ModelError: any other model.
        """
        seeds = [sequence_seed(self.args.seed, self.state.global_step, row) for row in inputs["sequences"]]
        in_step = self._counts.tokens > 0
        counts = self._counts if in_step else counts_of(inputs, self.objective)
        result = self.run_pass(inputs, self.objective, seeds, counts, model)
        routed = take_counts(model)
        if not inputs["counted"]:
            return result.loss * 0.0
        if in_step:
            # without the graph, which would live until the step's last pass
            kept = replace(result, loss=result.loss.detach())
            self._unread.append((kept, inputs, self._is_own(model), routed))
        else:
            self._refuse_non_finite_loss(result, inputs)
        loss = result.loss * max(self.args.world_size, 1)
        return (loss, result) if return_outputs else loss

    def _is_own(self, model: Any) -> bool:
        """Whether `model` is the trainer's, wrapped or not."""
        return self.accelerator.unwrap_model(model) is self.accelerator.unwrap_model(self.model)

    def _current_model(self) -> Any:
        """The wrapper of `self.model`; `self.model` itself if a user has put another model there."""
        return self.model_wrapped if self._is_own(self.model_wrapped) else self.model

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run all passes of an optimizer step, forward and backward. Processes exchange gradients in the last one. The
        host waits for the passes' results after the last backward pass is queued."""
        self._unread = []
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(inputs):
            last = number == len(inputs) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                try:
                    total += super().training_step(model, batch, num_items_in_batch)
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    message = step_errors.out_of_memory(batch["tokens"], self.args.per_device_train_batch_size)
                    raise self._step_error(message) from error
        self._read_results()
        self._counts = Counts(0, 0, 0)  # `compute_loss` is outside of a step from here on
        return total

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Trainer's norm. Trainer asks for it before the optimizer's step, so an error here leaves the weights as
        they were. Raises TrainingError if it is not finite."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if not math.isfinite(float(norm)):
            raise self._step_error(step_errors.non_finite_gradient(float(norm), self._step_documents))
        return norm


def _no_memory(model: Any) -> ModelError:
    from refine.models.loading import MODELS

    return ModelError(
        f"{type(model).__name__} has no memory to tap: expected a model of refine.models ({', '.join(MODELS)})"
    )


_OWN = ("data_collator", "compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics")  # Trainer's
