"""Rotary positions, rotate-half form (arXiv 2104.09864), at true token positions.

Shape legend: N tokens · H heads · K width of a head (even).
"""

from __future__ import annotations

import torch
from torch import Tensor

Table = tuple[Tensor, Tensor]
"""cos and sin, each [N, K], the angles of the first half of a head repeated in the second."""


def table(positions: Tensor, width: int, theta: float, dtype: torch.dtype) -> Table:
    """cos and sin of position · theta^(-2i/K) for int64 `positions` [N], in float32 (float64 for a float64 model).

    The published models compute angles in float32 too, whatever the dtype of their weights.
    """
    precise = torch.promote_types(dtype, torch.float32)
    halves = torch.arange(0, width, 2, dtype=precise, device=positions.device) / width
    angles = torch.outer(positions.to(precise), 1.0 / theta**halves)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, at: Table) -> Tensor:
    """x [N, H, K] rotated by the angles of its tokens: x · cos + (−x₂, x₁) · sin, in float32, returned in x's dtype."""
    cos, sin = at[0].unsqueeze(-2), at[1].unsqueeze(-2)
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)
