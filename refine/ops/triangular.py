"""Inverses of many small unit lower triangular matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_unit_lower(a: Tensor) -> Tensor:
    """a [..., C, C] strictly lower triangular -> (I + a)⁻¹, without gradient."""
    size = a.shape[-1]
    identity = torch.eye(size, dtype=a.dtype, device=a.device)
    if size == 1:
        return identity.expand(a.shape).contiguous()
    return torch.linalg.solve_triangular(a, identity.expand(a.shape), upper=False, unitriangular=True)
