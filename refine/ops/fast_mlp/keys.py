"""LaCT's fast queries and keys (arXiv 2505.23884): y = silu(x ∘ scale + offset), each fast head y / (‖y‖ + 1e-5).

Shape legend: N tokens · D hidden size · H fast heads.

Keeps only its input, and runs forward and backward in blocks that fit a core's cache, because the steps are many and
cheap. `by_steps` is the twin.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from refine.ops.autocast import own_precision
from refine.ops.row_groups import blocks
from refine.ops.without_graph import run

EPS = 1e-5  # added to a head's norm


def fast_keys(x: Tensor, scale: Tensor, offset: Tensor, heads: int, silu: bool) -> Tensor:
    """x [N, D], scale and offset [D] -> [N, D]: each head of SiLU(x scale + offset) divided by its L2 norm + 1e-5.

    Without `silu` the activation is left out. Computed in at least float32, returned in x's dtype.
    """
    return run(_FastKeys, x, scale, offset, heads, silu)


def by_steps(x: Tensor, scale: Tensor, offset: Tensor, heads: int, silu: bool) -> Tensor:
    """The twin: autograd goes through every step."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32)) * scale + offset
    split = (functional.silu(wide) if silu else wide).unflatten(-1, (heads, -1))
    return (split / (split.norm(dim=-1, keepdim=True) + EPS)).to(x.dtype).flatten(1)


class _FastKeys(torch.autograd.Function):
    @staticmethod
    @own_precision
    def forward(ctx: Any, x: Tensor, scale: Tensor, offset: Tensor, heads: int, silu: bool) -> Tensor:
        ctx.save_for_backward(x, scale, offset)
        ctx.heads, ctx.silu = heads, silu
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for rows in blocks(x):
            _, act, _, length = _parts(x[rows], scale, offset, heads, silu)
            out[rows] = act.div_(length).flatten(1)
        return out

    @staticmethod
    @once_differentiable
    @own_precision
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, offset = ctx.saved_tensors
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        wide = torch.promote_types(x.dtype, torch.promote_types(scale.dtype, torch.float32))
        d_scale, d_offset = (scale.new_zeros(scale.shape, dtype=wide) for _ in range(2))
        for rows in blocks(x):
            shifted, act, norm, length = _parts(x[rows], scale, offset, ctx.heads, ctx.silu)
            given = d[rows].to(wide).unflatten(-1, (ctx.heads, -1))
            along = torch.linalg.vecdot(given, act)[..., None].div_(length * norm)
            d_act = torch.addcmul(given, act, along, value=-1).div_(length).flatten(1)
            through = torch.ops.aten.silu_backward(d_act, shifted) if ctx.silu else d_act
            d_offset += through.sum(0)
            d_scale += (through * x[rows]).sum(0)
            dx[rows] = through.mul_(scale)
        return dx, d_scale.to(scale.dtype), d_offset.to(offset.dtype), None, None


def _parts(x: Tensor, scale: Tensor, offset: Tensor, heads: int, silu: bool) -> tuple[Tensor, ...]:
    """x scale + offset [n, D]; its activation [n, H, D / H]; its heads' norms (never 0), and norms + 1e-5 [n, H, 1]."""
    wide = torch.promote_types(x.dtype, torch.promote_types(scale.dtype, torch.float32))
    shifted = torch.addcmul(offset.to(wide), x.to(wide), scale.to(wide))
    act = (functional.silu(shifted) if silu else shifted).unflatten(-1, (heads, -1))
    norm = act.norm(dim=-1, keepdim=True)
    return shifted, act, norm.clamp(min=1e-20), norm + EPS
