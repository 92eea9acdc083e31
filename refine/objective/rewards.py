"""Rewards: how close a rollout is to the text that really follows (docs/method.md, Rewards; arXiv 2602.16704,
section 3).

Shape legend: R rollout starts · n rollouts of a start · k tokens of a rollout · D hidden size.

A reward is a function of hidden [R, n, k, D], the states after each sampled token; actual [R, k, D], the states after
each token of the text; rollouts [R, n, k] and text [R, k], the tokens. It returns [R, n]. To add a reward, write the
function and enter it in REWARDS, in RANGES and in `refine.settings.objective.REWARDS`. A function from outside of the
package needs none of that: `refine.objective.external_rewards`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def cosine(hidden: Tensor, actual: Tensor, rollouts: Tensor, text: Tensor) -> Tensor:
    """Mean over the tokens of cos(state of the rollout, state of the text); 1 if they are equal."""
    return torch.cosine_similarity(hidden, actual[:, None], dim=-1).mean(-1)


def binary(hidden: Tensor, actual: Tensor, rollouts: Tensor, text: Tensor) -> Tensor:
    """Share of the rollout's tokens that equal the text's."""
    return (rollouts == text[:, None]).to(hidden.dtype).mean(-1)


def hybrid(hidden: Tensor, actual: Tensor, rollouts: Tensor, text: Tensor) -> Tensor:
    """cosine + binary."""
    return cosine(hidden, actual, rollouts, text) + binary(hidden, actual, rollouts, text)


Reward = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
REWARDS: dict[str, Reward] = {"cosine": cosine, "binary": binary, "hybrid": hybrid}
RANGES = {"cosine": (-1.0, 1.0), "binary": (0.0, 1.0), "hybrid": (-1.0, 2.0)}  # of each reward's values


@torch.no_grad()
def rewards(
    hidden: Tensor, actual: Tensor, rollouts: Tensor, text: Tensor, more: Mapping[str, Reward] | None = None
) -> dict[str, Tensor]:
    """Every kind of reward, [R, n] each, in at least float32; `more`: further ones, by their names."""
    precise = torch.promote_types(hidden.dtype, torch.float32)
    states = hidden.to(precise), actual.to(precise)
    return {kind: reward(*states, rollouts, text) for kind, reward in (REWARDS | dict(more or {})).items()}
