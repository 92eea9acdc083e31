"""transformers.Trainer with a REFINE step in the place of its loss.

Everything else is Trainer's own: optimizer, schedules, mixed precision, gradient accumulation and checkpointing,
DDP and FSDP through accelerate, callbacks. What is ours besides the loss: the order of the data and the seed of each
sequence (`refine.training.order`), denominators that count the whole optimizer step, checkpoints that are whole or
ignored (`refine.training.saving`), and metrics under the names `train/...` and `val/...`.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from refine.errors import ModelError, SettingError, TrainingError
from refine.settings.base import validated
from refine.settings.objective import ObjectiveSettings
from refine.training import step_errors
from refine.training.arguments import RefineArguments
from refine.training.dataset import Batches, collate, rows_of, stream_of
from refine.training.distributed import call_through, gathered
from refine.training.losses import AnswerResult, pass_loss
from refine.training.order import Passes, sequence_seed
from refine.training.progress import Progress
from refine.training.saving import WholeCheckpoints
from refine.training.statistics import Counts, StepStatistics, counts_of
from refine.training.validation import validate

log = logging.getLogger(__name__)


class RefineTrainer(WholeCheckpoints, Trainer):
    """Train a fast-weight language model by next-sequence prediction.

    `model`: one of `refine.models`, or the folder or hub name of a checkpoint. `args`: RefineArguments.
    `train_dataset`, `eval_dataset` (also a dict of names and data sets): rows by index with a `tokens` or a `text`
    column (see `refine.training.dataset`), or with `prompt` and `answers` (`refine.training.dataset`: cross-entropy
    of the answers, and with `args.prompt_steps` REFINE on the prompts before). `processing_class`: the tokenizer,
    needed for text and prompts, and saved with the model. The rest as in transformers.Trainer.

    Each optimizer step takes the next `sequences_per_step` rows of the data's own stream. The loss of each pass is
    its share of the step's, so micro-batches, accumulation and the number of processes change nothing.
    """

    args: RefineArguments
    model: PreTrainedModel
    objective: ObjectiveSettings
    loss_is_scaled_for_ga = True  # our losses carry the denominators of the whole step (transformers >= 5.20)

    def __init__(
        self,
        model: PreTrainedModel | str,
        args: RefineArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        **more: Any,
    ) -> None:
        args = copy.copy(args) if args is not None else RefineArguments(output_dir="refine-training")
        if not isinstance(args, RefineArguments):
            raise SettingError(f"RefineTrainer takes RefineArguments (of refine.training), not {type(args).__name__}")
        if given := [name for name in _OWN if more.pop(name, None) is not None]:
            raise SettingError(f"RefineTrainer has batches, loss and metrics of its own: leave out {', '.join(given)}")
        if isinstance(model, str):
            from refine.models import from_pretrained

            model = from_pretrained(model)
        if not hasattr(model, "read"):
            raise ModelError(
                f"{type(model).__name__} has no memory to tap: expected a model of refine.models "
                "(delta_net, gated_deltanet or lact_swiglu)"
            )
        args._n_gpu = min(args.n_gpu, 1)  # one device a process; torchrun for more: DataParallel knows no memories
        self.sequences = None if train_dataset is None else rows_of(train_dataset, processing_class, args)
        self.stream = None if self.sequences is None else stream_of(self.sequences, args)
        if self.stream is not None:
            # To Trainer the run is one epoch of `steps` batches; each is a whole optimizer step, cut into passes here.
            args.max_steps, args.gradient_accumulation_steps = self.stream.steps, 1
        use_cache = getattr(model.config, "use_cache", None)
        super().__init__(
            model=model,
            args=args,
            train_dataset=self.sequences,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=collate,
            callbacks=callbacks,
            **more,
        )
        if use_cache is not None:
            self.model.config.use_cache = use_cache  # Trainer turns it off for good; checkpoints should not say so
        self._speak_once()
        self.model_accepts_loss_kwargs = True  # as loss_is_scaled_for_ga, for transformers before 5.20
        self.objective = validated(ObjectiveSettings, args.objective, "RefineArguments.objective")
        self._statistics, self._counts = StepStatistics(), Counts(0, 0, 0)
        self._step_documents: list[str] = []
        self._warned = False
        self._step_started, self._seconds = time.perf_counter(), 0.0
        self._steps_since_log, self._counted_step, self._validated_step = 0, -1, -1

    def _speak_once(self) -> None:
        """Our Progress for Trainer's bar and for the rows it would print (40 metrics a step)."""
        self.remove_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(Progress("training"))

    # -- data ------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """This process's passes, a list for each optimizer step. Not sharded by accelerate, which would repeat rows."""
        if self.sequences is None:
            raise SettingError("training needs a train_dataset")
        args = self.args
        return torch.utils.data.DataLoader(
            Batches(self.sequences),
            batch_sampler=Passes(
                self.stream, args.per_device_train_batch_size, max(args.world_size, 1), args.process_index
            ),
            collate_fn=list,
            num_workers=args.dataloader_num_workers,
            persistent_workers=args.dataloader_persistent_workers,
            generator=torch.Generator(),  # its own: iterating must not move the global one
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The next optimizer step, and its denominators over all its passes and processes."""
        self._step_started = time.perf_counter()
        steps = [step for _, step in zip(range(num_batches), epoch_iterator, strict=False)]
        batches = [batch for step in steps for batch in step]
        own = sum((counts_of(batch, self.objective) for batch in batches), Counts(0, 0, 0))
        self._counts = sum(gathered(own), Counts(0, 0, 0))
        self._step_documents = [name for batch in batches for name in batch["documents"] if batch["counted"]]
        if self._counts.lacks_rollouts(self.objective) and not self._warned and self.args.process_index == 0:
            self._warned = True
            log.warning("step %d: %s", self.state.global_step + 1, step_errors.too_short(self.objective))
        return steps, torch.tensor(max(self._counts.ntp_tokens, 1), device=device)

    def floating_point_ops(self, inputs: Any) -> int:
        """6 operations for each token and weight outside the embeddings; rollouts are not counted."""
        return 6 * sum(batch["tokens"].numel() for batch in inputs) * self.model.num_parameters(exclude_embeddings=True)

    def _track_num_input_tokens(self, inputs: Any) -> None:
        if self.args.include_num_input_tokens_seen != "no":
            self.state.num_input_tokens_seen += self._counts.tokens

    # -- the step --------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This pass's share of the step's loss, times the number of processes (whose gradients are averaged)."""
        seeds = [sequence_seed(self.args.seed, self.state.global_step, row) for row in inputs["sequences"]]
        own = torch.tensor(seeds, device=inputs["tokens"].device)
        with self.accelerator.autocast():
            result = call_through(
                model,
                self.accelerator.unwrap_model(model),
                lambda module: pass_loss(module, inputs, self.objective, own, self._counts),
            )
        if not inputs["counted"]:
            return result.loss * 0.0
        self._refuse_non_finite_loss(result, inputs)
        if isinstance(result, AnswerResult):
            self._statistics.add_answers(result, inputs)
        else:
            self._statistics.add(result, inputs)
        loss = result.loss * max(self.args.world_size, 1)
        return (loss, result) if return_outputs else loss

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """All passes of an optimizer step, each forward and backward; processes exchange gradients in the last."""
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(inputs):
            last = number == len(inputs) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                try:
                    total += super().training_step(model, batch, num_items_in_batch)
                except (MemoryError, RuntimeError) as error:
                    if not step_errors.is_out_of_memory(error):
                        raise
                    advice = step_errors.out_of_memory(batch["tokens"], self.args.per_device_train_batch_size)
                    raise TrainingError(f"step {self.state.global_step + 1}: {advice}") from error
        return total

    def _refuse_non_finite_loss(self, result: Any, inputs: dict[str, Any]) -> None:
        if not math.isfinite(float(result.loss.detach())):
            raise TrainingError(
                f"step {self.state.global_step + 1}: {step_errors.non_finite(result, inputs['documents'])}"
            )

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Trainer's; called before the optimizer's step, so weights stay as they are where it is not finite."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if not math.isfinite(float(norm)):
            raise TrainingError(
                f"step {self.state.global_step + 1}: the gradient's norm is {float(norm)} on "
                f"{'; '.join(self._step_documents)}: {step_errors.ADVICE}"
            )
        return norm

    # -- what is logged --------------------------------------------------------------------------------------------

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's (called after each step, and once more at the end), with the step's time taken before validation
        and saving. The last step is validated whatever the interval."""
        step, control = self.state.global_step, self.control
        if step > self._counted_step:
            self._seconds += time.perf_counter() - self._step_started
            self._steps_since_log, self._counted_step = self._steps_since_log + 1, step
            if self.stream is not None:  # to Trainer the whole run is one epoch
                self.state.epoch = self.stream.epochs(step)
                ended = int(self.state.epoch) > int(self.stream.epochs(step - 1))
                control.should_evaluate |= ended and self.args.eval_strategy == "epoch"
                control.should_save |= ended and self.args.save_strategy == "epoch"
        control.should_evaluate |= step >= self.state.max_steps and self.args.eval_strategy != "no"
        control.should_evaluate &= self._validated_step < step
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a row of metrics under `train/...` or, where they name their part already, as they are."""
        if "train_runtime" in logs:  # Trainer's summary of a call: says nothing that is true after a resume
            return
        if "loss" in logs:
            logs = {f"train/{name}": value for name, value in logs.items()}
            merged = StepStatistics.merged(gathered(self._statistics))
            logs.update(
                {
                    f"train/{name}": value
                    for name, value in merged.metrics(self._steps_since_log, self.objective.reward).items()
                }
            )
            logs["train/tokens"] = merged.sums.get("tokens", 0.0)
            logs["train/seconds"] = self._seconds
            logs["train/tokens_per_second"] = merged.sums.get("tokens", 0.0) / max(self._seconds, 1e-9)
            self._statistics, self._seconds, self._steps_since_log = StepStatistics(), 0.0, 0
        super().log(logs, start_time)

    # -- validation ------------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Next-token loss and accuracy, and the rewards of rollouts, on held-out sequences.

        `eval_dataset`: as in the constructor; a dict gives each data set's metrics under its name. Logged as
        `val/...`, with histograms of the rewards; the numbers are returned under Trainer's names (`eval_loss`, ...),
        which `metric_for_best_model` goes by.
        """
        data = eval_dataset if eval_dataset is not None else self.eval_dataset
        if data is None:
            raise SettingError("validation needs an eval_dataset")
        self._validated_step = self.state.global_step
        metrics: dict[str, float] = {}
        for name, part in data.items() if isinstance(data, dict) else [("val", data)]:
            rows = rows_of(part, self.processing_class, self.args)
            found = validate(self, rows, name)
            self.log({f"{name}/{key}": value for key, value in found.items()})
            prefix = f"{metric_key_prefix}_{name}_" if isinstance(data, dict) else f"{metric_key_prefix}_"
            metrics.update({prefix + key: value for key, value in found.items() if not isinstance(value, list)})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """Trainer's; the validation before the first step is not repeated by a run that is resumed."""
        if skip_scheduler and self.state.log_history:
            return {}
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)


_OWN = ("data_collator", "compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics")  # Trainer's
