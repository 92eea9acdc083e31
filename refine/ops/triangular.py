"""Inverses of many small unit lower triangular matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_unit_lower(a: Tensor, out: Tensor) -> None:
    """a [..., C, C] strictly lower triangular -> out [..., C, C] = (I + a)⁻¹, without gradient."""
    size = a.shape[-1]
    if size == 1:
        out.fill_(1)
        return
    identity = torch.eye(size, dtype=a.dtype, device=a.device)
    out.copy_(torch.linalg.solve_triangular(a, identity.expand(a.shape), upper=False, unitriangular=True))
