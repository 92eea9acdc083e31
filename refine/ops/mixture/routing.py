"""Which experts each token goes to, and with what weights.

Shape legend: N tokens · E experts · k experts of a token · n groups of E / n experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Routes(NamedTuple):
    """`experts` [N, k] int64, the best first; their `weights` [N, k]; `probabilities` [N, E]: the router's preferences,
    with sum 1 for each token, for statistics."""

    experts: Tensor
    weights: Tensor
    probabilities: Tensor


def by_softmax(logits: Tensor, k: int, normalised: bool = True) -> Routes:
    """logits [N, E], at least float32. p = softmax(logits); the k largest, divided by their sum if `normalised`.

    Qwen3-Next (its `norm_topk_prob` is `normalised`) and Qwen3.5 (always normalised)."""
    probabilities = logits.softmax(-1)
    weights, experts = probabilities.topk(k, -1)
    return Routes(experts, weights / weights.sum(-1, keepdim=True) if normalised else weights, probabilities)


def by_sigmoid(
    logits: Tensor,
    bias: Tensor,
    k: int,
    groups: int = 1,
    best_groups: int = 1,
    normalised: bool = True,
    scale: float = 1.0,
) -> Routes:
    """logits [N, E], at least float32; bias [E], which has no gradient. s = sigmoid(logits).

    Chosen by s + bias: the k best experts in the `best_groups` best of the `groups` (a group's score: the sum of its
    two best). Weighed by s: divided by their sum + 1e-20 if `normalised`, times `scale`. DeepSeek-V3, Kimi Linear."""
    scores = logits.sigmoid()
    with torch.no_grad():
        choice = scores + bias.to(scores.dtype)
        if best_groups < groups:
            choice = _within_best_groups(choice, groups, best_groups)
        experts = choice.topk(k, -1).indices
    weights = scores.gather(-1, experts)
    if normalised:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return Routes(experts, weights * scale, scores / scores.sum(-1, keepdim=True))


def _within_best_groups(choice: Tensor, groups: int, best: int) -> Tensor:
    """choice [N, E], with −inf in all groups but the `best` best."""
    grouped = choice.unflatten(-1, (groups, -1))
    score = grouped.topk(min(2, grouped.shape[-1]), -1).values.sum(-1)
    outside = torch.ones_like(score, dtype=torch.bool).scatter_(-1, score.topk(best, -1).indices, False)
    return grouped.masked_fill(outside[..., None], float("-inf")).flatten(-2)
