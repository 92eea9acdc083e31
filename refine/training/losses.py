"""The loss of one pass: a REFINE step on tokens, or the cross-entropy of answers given their prompts.

Shapes: B rows · T tokens of a row · N answer tokens of the pass · D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from refine.objective import next_sequence_step
from refine.objective.external_rewards import ExternalReward
from refine.objective.result import StepResult
from refine.ops.token_statistics import token_statistics
from refine.settings.objective import ObjectiveSettings
from refine.training.statistics import Counts


@dataclass(frozen=True)
class AnswerResult:
    """`loss` [] (with gradient): summed cross-entropy of the pass's N answer tokens, divided by those of the step.
    `accuracy` [] (detached): the share of the N that were the likeliest token. `answer_tokens`: N."""

    loss: Tensor
    accuracy: Tensor
    answer_tokens: int


def pass_loss(
    model: Any,
    batch: dict[str, Any],
    objective: ObjectiveSettings,
    seeds: Tensor,
    counts: Counts,
    reward: ExternalReward | None = None,
) -> StepResult | AnswerResult:
    """The loss of `batch` (`refine.training.dataset.collate`). `counts`: the denominators of its step.

    `reward`: one from outside, which is optimised."""
    if batch["kind"] == "answers":
        return answer_loss(model, batch["tokens"], batch["lengths"], batch["prompts"], counts.answer_tokens)
    return next_sequence_step(
        model,
        batch["tokens"],
        objective,
        seeds,
        lengths=batch["lengths"],
        marks=batch["marks"],
        ntp_tokens=max(counts.ntp_tokens, 1),
        rollout_tokens=max(counts.rollout_tokens, 1),
        focus_tokens=max(counts.focus_tokens, 1),
        reward=reward,
    )


def answer_loss(
    model: Any, tokens: Tensor, lengths: list[list[int]] | None, prompts: list[int], denominator: int
) -> AnswerResult:
    """The loss of the answers in `tokens` [B, T] int64. Row b holds a prompt of prompts[b] tokens, then its answer.

    Only answer tokens count, each predicted from the token before it (docs/method.md, Phases); only their logits are
    computed. `denominator`: answer tokens of the step."""
    rows, width = tokens.shape
    hidden = model.read(tokens, lengths=lengths).hidden  # [B, T, D]
    ends = [width] * rows if lengths is None else [row[0] for row in lengths]
    places = [(row, place) for row in range(rows) for place in range(prompts[row], ends[row])]  # N answer tokens
    row, place = torch.tensor(places, device=tokens.device).unbind(1)
    weights = torch.full((len(places),), 1 / max(denominator, 1), device=tokens.device)
    found = token_statistics(hidden[row, place - 1], model.get_output_embeddings().weight, tokens[row, place], weights)
    return AnswerResult(found.loss, found.correct.float().mean(), len(places))
