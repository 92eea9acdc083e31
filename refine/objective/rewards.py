"""Rewards: how close a rollout is to the text that really follows (docs/method.md, Rewards; arXiv 2602.16704,
section 3).

Shape legend: R rollout starts · n rollouts of a start · k tokens of a rollout · D hidden size.

A reward is a function of hidden [R, n, k, D], the states after each sampled token; actual [R, k, D], the states after
each token of the text; rollouts [R, n, k] and text [R, k], the tokens. It returns [R, n]. To add a reward, write the
function and enter it in REWARDS and in `ObjectiveSettings.reward`.
"""

from __future__ import annotations

from collections.abc import Callable

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


@torch.no_grad()
def rewards(hidden: Tensor, actual: Tensor, rollouts: Tensor, text: Tensor) -> dict[str, Tensor]:
    """Every kind of reward, [R, n] each, in at least float32."""
    precise = torch.promote_types(hidden.dtype, torch.float32)
    states = hidden.to(precise), actual.to(precise)
    return {kind: reward(*states, rollouts, text) for kind, reward in REWARDS.items()}
