"""The losses at the selected positions (docs/method.md, Loss): the clipped policy gradient of the sampled tokens (PPO,
arXiv 1707.06347, with the dual clip of arXiv 1912.09729), and the cross-entropy of the true ones.

Shape legend: B rows · T tokens of a row · D hidden size · V vocabulary · R rollout starts · n rollouts of a start
· k tokens of a rollout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refine.objective.documents import RolloutStarts
from refine.ops.token_statistics import token_statistics
from refine.settings.objective import ObjectiveSettings


def policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, rollout_tokens: float, settings: ObjectiveSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """log_probs, old_log_probs [R, n, k], advantages [R, n] -> (loss [], ratio [R, n, k], clip fraction []).

    A token's loss is max(-A r, -A clip(r, 1 ± ratio_clip)), at most -A dual_clip where A < 0; r = exp(new - old).
    `loss` is their sum divided by `rollout_tokens`, the count of the whole optimizer step; only `loss` has a gradient.
    """
    ratio = (log_probs - old_log_probs.detach()).exp()
    a = advantages[..., None].to(ratio.dtype)
    free = -a * ratio
    clipped = -a * ratio.clamp(1 - settings.ratio_clip, 1 + settings.ratio_clip)
    token_loss = torch.maximum(free, clipped)
    bounded = torch.where(a < 0, torch.minimum(token_loss, -a * settings.dual_clip), token_loss)
    with torch.no_grad():
        away = (bounded != free).to(ratio.dtype)
        fraction = away.mean() if away.numel() else away.sum()
    return bounded.sum() / rollout_tokens, ratio.detach(), fraction


def focus_loss(
    hidden: Tensor, head: Tensor, tokens: Tensor, starts: RolloutStarts, k: int, focus_tokens: float
) -> Tensor:
    """[] cross-entropy of the k true tokens after each start, summed, divided by `focus_tokens`, the count of the whole
    optimizer step [nats per token]. hidden [B, T, D] has the gradient; head [V, D], tokens [B, T] int64.

    A token after two starts counts twice.
    """
    there = starts.on(tokens.device)
    row = there.row[:, None]
    at = there.position[:, None] + torch.arange(k, device=tokens.device)  # [R, k]: the state before predicts the token
    targets = tokens[row, at]
    weights = torch.full(targets.shape, 1 / focus_tokens, device=tokens.device)
    return token_statistics(hidden[row, at - 1], head, targets, weights).loss
