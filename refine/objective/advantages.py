"""Step 5 of METHOD.md: how much better a rollout is than its group (GRPO, arXiv 2402.03300).

Shape legend: R places · n rollouts of a place · G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def advantages(rewards: Tensor, document: Tensor, group: str) -> Tensor:
    """(r - mean) / (std + 1e-6) within a group, std with n - 1: rewards [R, n] -> [R, n].

    `group`: "sequence", all rollouts of a document (document [R] int64 numbers them), or "position", the rollouts of a
    place. A lone reward, and a group whose rewards are all equal, give 0.
    """
    places, n = rewards.shape
    if group == "position":
        document = torch.arange(places, device=rewards.device)
    index = document.to(rewards.device)[:, None].expand(places, n).reshape(-1)
    groups = int(index.max()) + 1 if places else 0
    values = rewards.reshape(-1)
    count, total = (values.new_zeros(groups).index_add(0, index, x) for x in (torch.ones_like(values), values))
    away = values - (total / count.clamp(min=1))[index]
    variance = values.new_zeros(groups).index_add(0, index, away.square()) / (count - 1).clamp(min=1)
    bounds = [
        values.new_zeros(groups).scatter_reduce(0, index, values, how, include_self=False) for how in ("amin", "amax")
    ]
    equal = (bounds[0] == bounds[1])[index]
    return torch.where(equal, 0.0, away / (variance.sqrt()[index] + 1e-6)).view(places, n)
