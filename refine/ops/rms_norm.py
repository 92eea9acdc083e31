"""Root-mean-square norm (arXiv 1910.07467) and scaling to unit length, computed in at least float32.

Shape legend: D normalised width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from refine.ops.autocast import own_precision
from refine.ops.without_graph import run


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * weight over the last dimension; the result has the dtype of x."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        wide = torch.promote_types(x.dtype, torch.float32)
        eps = self.eps * x.shape[-1]
        unit = run(_Unit, x.to(wide), eps)
        return (unit * (self.gain(wide) * x.shape[-1] ** 0.5)).to(x.dtype)

    def gain(self, dtype: torch.dtype) -> Tensor:
        """[D]: what each channel is multiplied by."""
        return self.weight.to(dtype)


class ZeroCentredRMSNorm(RMSNorm):
    """x / sqrt(mean(x²) + eps) * (1 + weight), with weights that start at 0 (Qwen3-Next, Qwen3.5)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps)
        nn.init.zeros_(self.weight)

    def gain(self, dtype: torch.dtype) -> Tensor:
        return 1 + self.weight.to(dtype)


def unit_length(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x [..., D] divided by its L2 norm: x rsqrt(sum x² + eps)."""
    return run(_Unit, x, eps)


class _Unit(torch.autograd.Function):
    """x rsqrt(sum x² + eps): one pass forward and two backward, keeping its result and one number a row."""

    @staticmethod
    @own_precision
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vecdot(x, x).add_(eps).rsqrt_()[..., None]
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @own_precision
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        along = torch.linalg.vecdot(grads[0], y)[..., None]
        return torch.addcmul(grads[0], y, along, value=-1).mul_(scale), None
