"""Step 5 of METHOD.md: how much better a rollout is than its group (GRPO, arXiv 2402.03300).

Shape legend: R places · n rollouts of a place · G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

EQUAL = 8  # rewards of a group that differ by fewer units in the last place are equal


@torch.no_grad()
def advantages(rewards: Tensor, document: Tensor, group: str) -> Tensor:
    """(r - mean) / (std + 1e-6) within a group, std with n - 1: rewards [R, n] -> [R, n].

    `group`: "sequence", all rollouts of a document (document [R] int64 numbers them), or "position", the rollouts of a
    place. A lone reward, and a group whose rewards are all equal (to rounding: cosines of equal states differ in their
    last places, which the formula would turn into advantages of 0.1), give 0.
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
    low, high = (
        values.new_zeros(groups).scatter_reduce(0, index, values, how, include_self=False) for how in ("amin", "amax")
    )
    rounding = EQUAL * torch.finfo(values.dtype).eps * torch.maximum(low.abs(), high.abs())
    equal = (high - low <= rounding)[index]
    return torch.where(equal, 0.0, away / (variance.sqrt()[index] + 1e-6)).view(places, n)
