"""Advantages: how much better a rollout is than its group (docs/method.md, Advantages; GRPO, arXiv 2402.03300).

Shape legend: R rollout starts · n rollouts of a start · G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

EQUAL = 8  # rewards of a group that differ by fewer units in the last place are equal


@torch.no_grad()
def advantages(rewards: Tensor, document: Tensor, group: str, documents: int | None = None) -> Tensor:
    """(r - mean) / (std + 1e-6) within a group, std with n - 1: rewards [R, n] -> [R, n].

    `group`: "sequence" compares all rollouts of a document (document [R] int64 numbers them), "position" the rollouts
    of a start. `documents`: more than every number in `document`, so that its device need not be asked. A lone reward
    gives 0. A group whose rewards are all equal to rounding gives 0 too: cosines of equal states differ in their last
    digits, which the formula would turn into advantages of 0.1.
    """
    starts, n = rewards.shape
    if group == "position":
        document, documents = torch.arange(starts, device=rewards.device), starts
    if documents is None:
        documents = int(document.max()) + 1 if starts else 0
    index = document.to(rewards.device)[:, None].expand(starts, n).reshape(-1)
    groups = documents if starts else 0
    values = rewards.reshape(-1)
    count, total = (values.new_zeros(groups).index_add(0, index, x) for x in (torch.ones_like(values), values))
    away = values - (total / count.clamp(min=1))[index]
    variance = values.new_zeros(groups).index_add(0, index, away.square()) / (count - 1).clamp(min=1)
    low, high = (
        values.new_zeros(groups).scatter_reduce(0, index, values, how, include_self=False) for how in ("amin", "amax")
    )
    rounding = EQUAL * torch.finfo(values.dtype).eps * torch.maximum(low.abs(), high.abs())
    equal = (high - low <= rounding)[index]
    return torch.where(equal, 0.0, away / (variance.sqrt()[index] + 1e-6)).view(starts, n)
