"""Validation during training: loss and accuracy on held-out sequences, and the rewards of rollouts there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from refine.objective.result import StepResult
from refine.settings.objective import ObjectiveSettings, reward_kind
from refine.training import exchange
from refine.training.arguments import RefineArguments
from refine.training.dataset import Rows, collate
from refine.training.losses import AnswerResult
from refine.training.order import derived_seed
from refine.training.statistics import Counts, StepStatistics, counts_of

RunPass = Callable[[dict[str, Any], ObjectiveSettings, Sequence[int], Counts], StepResult | AnswerResult]
"""(batch, objective, one seed per row, denominators) -> result of one forward pass (`RefineTrainer.run_pass`)."""

NAMES = {"ntp_loss": "loss", "ntp_accuracy": "accuracy"}
OF_TRAINING = {"nsp_loss", "clip_fraction", "ratio/mean", "advantage/std", "log_prob_gap"}  # not logged here


@torch.no_grad()
def validate(
    run_pass: RunPass, model: nn.Module, rows: Rows, name: str, objective: ObjectiveSettings, args: RefineArguments
) -> dict[str, Any]:
    """Metrics of `rows`: loss, accuracy, entropy, and each reward of rollouts at positions chosen as in training, also
    as a histogram (a list of counts). For prompts with answers also the loss and accuracy of the answers.

    `objective`: that of training. Draws depend only on the run's seed, `name` and the row, so they are the same at
    every step and in every arm. Rows are dealt to the processes in turn; each counts once. `model` is evaluated by
    `run_pass`; here its mode is set and restored.
    """
    training = model.training
    model.eval()
    # The same rollouts in every arm, also in one trained without the next-sequence loss.
    sampling = objective.model_copy(update={"nsp_weight": 1.0 if args.validation_rollouts else 0.0})
    kinds = ("prompts", "answers") if rows.with_answers else ("tokens",)
    merged = StepStatistics.merged([_statistics(run_pass, rows, name, kind, sampling, args) for kind in kinds])
    model.train(training)
    found: dict[str, Any] = merged.metrics(quantiles_of=reward_kind(objective.reward)) | merged.histograms()
    return {NAMES.get(name, name): value for name, value in found.items() if name not in OF_TRAINING}


def _statistics(
    run_pass: RunPass, rows: Rows, name: str, kind: str, objective: ObjectiveSettings, args: RefineArguments
) -> StepStatistics:
    """The statistics of all `rows`, over all processes."""
    size, process, processes = args.per_device_eval_batch_size, args.process_index, max(args.world_size, 1)
    places = [range(first, min(first + size, len(rows))) for first in range(0, len(rows), size)]
    batches = [collate([rows[place] for place in batch], kind) for batch in places]
    each = [counts_of(batch, objective) for batch in batches]
    counts = sum(each, Counts(0, 0, 0))
    statistics = StepStatistics()
    for first in range(0, len(batches), processes):
        # A process without a batch runs the last one again: the wrappers need all processes in each pass.
        batch = batches[min(first + process, len(batches) - 1)]
        batch["tokens"] = batch["tokens"].to(args.device)
        seeds = [derived_seed("validation", args.seed, name, row) for row in batch["sequences"]]
        result = run_pass(batch, objective, seeds, counts)
        if first + process < len(batches):
            statistics.add(result, batch)
    most = max(sum(one.rollout_tokens for one in each[rank::processes]) for rank in range(processes))
    return exchange.merged(statistics, exchange.Room.of(objective, most), args.device)
