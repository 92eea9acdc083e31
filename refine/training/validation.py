"""Validation during training: what a model loses on held-out sequences, and what its rollouts there are worth."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from refine.settings.objective import ObjectiveSettings
from refine.training.dataset import Sequences, collate
from refine.training.distributed import call_through, gathered
from refine.training.losses import AnswerResult, pass_loss
from refine.training.order import derived_seed
from refine.training.statistics import Counts, StepStatistics, counts_of

if TYPE_CHECKING:
    from refine.training.trainer import RefineTrainer


@torch.no_grad()
def validate(trainer: RefineTrainer, rows: Sequences, name: str) -> dict[str, Any]:
    """Metrics of `rows`: loss, accuracy, entropy, and each reward of rollouts at positions chosen as in training, also
    as a histogram (a list of counts); of prompts with answers also the loss and accuracy of the answers.

    Draws depend on the run's seed, `name` and the row, so they are the same at every step and in every arm. Rows are
    dealt to the processes in turn; each counts once. Leaves the model in the mode it was in.
    """
    model = trainer.model
    training = model.training
    model.eval()
    parts = [
        _statistics(trainer, rows, name, kind) for kind in (("prompts", "answers") if rows.exchanges else ("tokens",))
    ]
    model.train(training)
    merged = StepStatistics.merged(parts)
    found: dict[str, Any] = merged.metrics(quantiles_of=trainer.objective.reward) | merged.histograms()
    return {_NAMES.get(name, name): value for name, value in found.items() if name not in _OF_TRAINING}


def _statistics(trainer: RefineTrainer, rows: Sequences, name: str, kind: str) -> StepStatistics:
    """The statistics of one pass through `rows`, over all processes."""
    args, size = trainer.args, trainer.args.per_device_eval_batch_size
    objective = _objective(trainer.objective, args.validation_rollouts)
    process, processes = args.process_index, max(args.world_size, 1)
    places = [range(first, min(first + size, len(rows))) for first in range(0, len(rows), size)]
    batches = [collate([rows[place] for place in batch], kind) for batch in places]
    counts = sum((counts_of(batch, objective) for batch in batches), Counts(0, 0, 0))
    statistics = StepStatistics()
    for first in range(0, len(batches), processes):
        # A process that has none left reads the last one too: the wrappers' exchanges need all of them in each pass.
        batch = batches[min(first + process, len(batches) - 1)]
        batch["tokens"] = batch["tokens"].to(args.device)
        seeds = torch.tensor([derived_seed("validation", args.seed, name, row) for row in batch["sequences"]])
        step = partial(pass_loss, batch=batch, objective=objective, seeds=seeds.to(args.device), counts=counts)
        with trainer.accelerator.autocast():
            wrapped = trainer.model_wrapped
            result = call_through(wrapped, trainer.accelerator.unwrap_model(wrapped), step)
        if first + process >= len(batches):
            continue
        if isinstance(result, AnswerResult):
            statistics.add_answers(result, batch)
        else:
            statistics.add(result, batch)
    return StepStatistics.merged(gathered(statistics))


_NAMES = {"ntp_loss": "loss", "ntp_accuracy": "accuracy"}
_OF_TRAINING = {"nsp_loss", "clip_fraction", "ratio/mean", "advantage/std", "log_prob_gap"}


def _objective(training: ObjectiveSettings, rollouts: bool) -> ObjectiveSettings:
    """Training's own positions and rollouts, in every arm alike; without `rollouts`, next-token loss alone."""
    return training.model_copy(update={"nsp_weight": 1.0 if rollouts else 0.0})
