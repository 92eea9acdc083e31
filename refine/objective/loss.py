"""The clipped policy-gradient loss of the sampled tokens (docs/method.md, Loss; PPO, arXiv 1707.06347, with the dual
clip of arXiv 1912.09729).

Shape legend: R rollout starts · n rollouts of a start · k tokens of a rollout.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
