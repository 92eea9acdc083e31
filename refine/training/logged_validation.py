"""The part of RefineTrainer that logs metrics (`train/...`, `val/...`) and validates on held-out sequences."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, Trainer

from refine.errors import SettingError, TrainingError
from refine.metric_names import validation_name
from refine.models.mixture import RouterCounts
from refine.settings.objective import ObjectiveSettings, reward_kind
from refine.system.exhausted import out_of_memory_in_one_line
from refine.system.files import json_values
from refine.training import exchange, step_errors
from refine.training.arguments import RefineArguments
from refine.training.dataset import rows_of
from refine.training.order import NestedStream, Stream
from refine.training.statistics import Counts, StepStatistics, counts_of, on_host
from refine.training.validation import RunPass, validate


class LoggedValidation(Trainer):
    """transformers.Trainer whose rows of metrics are means over whole optimizer steps, and which validates by
    `refine.training.validation`."""

    args: RefineArguments
    objective: ObjectiveSettings
    stream: Stream | NestedStream | None
    run_pass: RunPass
    model: PreTrainedModel
    _statistics: StepStatistics  # of the steps since the last logged row
    # passes of this step: result, batch, whether it enters metrics, what the routers of mixtures did
    _unread: list[tuple[Any, dict[str, Any], bool, RouterCounts | None]]
    _rollout_tokens: list[int]  # that each process samples in these steps
    _places_elsewhere: int  # tokens and padding that the other processes read since the last `store_flos`
    _seconds: float  # of these steps
    _step_started: float
    _steps_since_log: int
    _counted_step: int
    _validated_step: int

    def _start_counting(self) -> None:
        self._statistics, self._seconds, self._step_started = StepStatistics(), 0.0, time.perf_counter()
        self._steps_since_log, self._counted_step, self._validated_step = 0, -1, -1
        self._unread, self._rollout_tokens, self._places_elsewhere = [], [0], 0

    # -- what the processes tell each other before a step's first forward pass --------------------------------------

    def _step_counts(self, batches: Sequence[dict[str, Any]]) -> Counts:
        """The counts of a step over all processes, of which this one runs `batches`. One collective."""
        own = sum((counts_of(batch, self.objective) for batch in batches), Counts(0, 0, 0))
        places = sum(batch["tokens"].numel() for batch in batches)
        counts, everywhere = exchange.counts_of_all(own, places, self.args.device)
        before = self._rollout_tokens if len(self._rollout_tokens) == len(counts) else [0] * len(counts)
        self._rollout_tokens = [held + one.rollout_tokens for held, one in zip(before, counts, strict=True)]
        self._places_elsewhere += everywhere - places
        return sum(counts, Counts(0, 0, 0))

    def floating_point_ops(self, inputs: Any) -> int:
        """6 operations per token and weight outside the embeddings; rollouts are not counted."""
        return self._operations(sum(batch["tokens"].numel() for batch in inputs))

    def _operations(self, places: int) -> int:
        return 6 * places * self.model.num_parameters(exclude_embeddings=True)

    def store_flos(self) -> None:
        """Trainer's, for all processes, without an exchange: each knows how many tokens the others read."""
        others = float(self._operations(self._places_elsewhere)) if self._places_elsewhere else 0.0
        self.state.total_flos += self.current_flos + others
        self.current_flos, self._places_elsewhere = 0, 0

    # -- the results of a step's passes ---------------------------------------------------------------------------

    def _read_results(self) -> None:
        """Take the results of the step's passes to the host, in one transfer. Raises TrainingError: a loss is not
        finite. The optimizer has not moved the weights yet."""
        routed = [counts for *_, own, counts in self._unread if own and counts is not None]
        results = on_host([*(one[0] for one in self._unread), *routed])
        for result, (_, inputs, own, _) in zip(results, self._unread, strict=False):
            self._refuse_non_finite_loss(result, inputs)
            if own:
                self._statistics.add(result, inputs)
        for counts in results[len(self._unread) :]:
            self._statistics.add_routing(counts)
        self._unread = []

    def _refuse_non_finite_loss(self, result: Any, inputs: dict[str, Any]) -> None:
        if not math.isfinite(float(result.loss.detach())):
            raise self._step_error(step_errors.non_finite_loss(result, inputs["documents"]))

    def _step_error(self, message: str) -> TrainingError:
        return TrainingError(f"step {self.state.global_step + 1}: {message}")

    # -- what is logged --------------------------------------------------------------------------------------------

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Trainer calls this after each step, and once more at the end. The step's time is taken first, so that it
        leaves out validation and saving. The last step is always validated."""
        step, control = self.state.global_step, self.control
        if step > self._counted_step:
            self._seconds += time.perf_counter() - self._step_started
            self._steps_since_log, self._counted_step = self._steps_since_log + 1, step
            if self.stream is not None:  # Trainer sees one epoch (see __init__)
                self.state.epoch = self.stream.epochs(step)
                ended = int(self.state.epoch) > int(self.stream.epochs(step - 1))
                control.should_evaluate |= ended and self.args.eval_strategy == "epoch"
                control.should_save |= ended and self.args.save_strategy == "epoch"
        control.should_evaluate |= step >= self.state.max_steps and self.args.eval_strategy != "no"
        control.should_evaluate &= self._validated_step < step
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a row of metrics. A row of training gets the prefix `train/`; a row of validation has its prefix. A value
        that is not finite is logged as None (null in files)."""
        if "train_runtime" in logs:  # Trainer's summary of this call is wrong after a resume
            return
        if "loss" in logs:
            logs = {f"train/{name}": value for name, value in logs.items()}
            room = exchange.Room.of(self.objective, max(self._rollout_tokens), self.model)
            merged = exchange.merged(self._statistics, room, self.args.device)
            found = merged.metrics(self._steps_since_log, reward_kind(self.objective.reward))
            logs |= {f"train/{name}": value for name, value in found.items()}
            logs["train/tokens"] = merged.sums.get("tokens", 0.0)
            logs["train/seconds"] = self._seconds
            logs["train/tokens_per_second"] = merged.sums.get("tokens", 0.0) / max(self._seconds, 1e-9)
            self._statistics, self._seconds, self._steps_since_log = StepStatistics(), 0.0, 0
            self._rollout_tokens = [0]
        super().log(json_values(logs), start_time)

    # -- validation ------------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Next-token loss and accuracy, and the rewards of rollouts, on held-out sequences.

        `eval_dataset`: as in the constructor; a dict gives each data set's metrics under its name. The metrics are
        logged as `val/...` (of prompts as `val/prompts/...`), with histograms of the rewards, and returned under
        Trainer's names (`eval_loss`, ...), which `metric_for_best_model` refers to. Raises TrainingError: a loss or an
        accuracy is not finite.
        """
        data = eval_dataset if eval_dataset is not None else self.eval_dataset
        if data is None:
            raise SettingError("validation needs an eval_dataset")
        self._validated_step = self.state.global_step
        metrics: dict[str, float] = {}
        for name, part in data.items() if isinstance(data, dict) else [("val", data)]:
            rows = rows_of(part, self.processing_class, self.args, vocabulary(self.model))
            with out_of_memory_in_one_line(
                TrainingError, f"in the validation on {name}", step_errors.VALIDATION_ADVICE
            ):
                found = validate(self.run_pass, self.model, rows, name, self.objective, self.args)
            self._refuse_non_finite_scores(name, found, rows.with_answers)
            self.log({validation_name(name, key, rows.with_answers): value for key, value in found.items()})
            prefix = f"{metric_key_prefix}_{name}_" if isinstance(data, dict) else f"{metric_key_prefix}_"
            metrics.update({prefix + key: value for key, value in found.items() if not isinstance(value, list)})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def share_model(self) -> None:
        """For an evaluation without training: with FSDP2 the processes share the model from here on, which also puts it
        on their devices. Else nothing; `train` does this by itself."""
        if not (self.is_fsdp_enabled and self.accelerator.is_fsdp2):
            return
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        self.model = self.model_wrapped = fsdp2_prepare_model(self.accelerator, self.model)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused with a SettingError: there are no logits of whole batches to return."""
        raise SettingError(
            "RefineTrainer has no predict(): score held-out sequences with evaluate(), or prompts with "
            "refine.evaluation.evaluate_model"
        )

    def _refuse_non_finite_scores(self, name: str, found: dict[str, Any], of_prompts: bool) -> None:
        for score in ("loss", "answer_loss", "accuracy", "answer_accuracy"):
            if not math.isfinite(found.get(score, 0.0)):
                where = f"in the validation after step {self.state.global_step}"
                named = validation_name(name, score, of_prompts)
                raise TrainingError(f"{named} is {found[score]} {where}: {step_errors.ADVICE}")

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """Trainer's, except that a resumed run does not repeat the validation before the first step."""
        if skip_scheduler and self.state.log_history:
            return {}
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)


def vocabulary(model: Any) -> int | None:
    """The number of tokens that `model` knows; None if its config does not say."""
    return getattr(model.config, "vocab_size", None)
