"""Root-mean-square norm (arXiv 1910.07467) and scaling to unit length, computed in at least float32.

Shape legend: D normalised width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from refine.ops.autocast import own_precision
from refine.ops.made_again import forget
from refine.ops.without_graph import run


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * weight over the last dimension."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(
        self, x: Tensor, dtype: torch.dtype | None = None, gate: Tensor | None = None, activation: str = "silu"
    ) -> Tensor:
        """x [..., D] -> [..., D] in `dtype` (default: that of x), times activation(gate [..., D]) if there is a gate.

        activation: "silu" or "sigmoid". A 16-bit result is rounded once, and can be made again (`made_again`).
        """
        dtype = x.dtype if dtype is None else dtype
        wide = torch.promote_types(x.dtype, torch.float32)
        eps = self.eps * x.shape[-1]
        if dtype.itemsize == 2 and wide == torch.float32:
            gain = self.gain(wide) * x.shape[-1] ** 0.5
            return run(_NarrowNorm, x, gain, gate, activation, eps, dtype)
        unit = run(_Unit, x.to(wide), eps)
        y = (unit * (self.gain(wide) * x.shape[-1] ** 0.5)).to(dtype)
        return y if gate is None else y * activated(gate.to(y.dtype), activation)

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
    """x [..., D] divided by its L2 norm: x rsqrt(sum x² + eps), in the dtype of x."""
    return run(_Unit, x, eps)


def activated(gate: Tensor, activation: str) -> Tensor:
    """silu(gate) or sigmoid(gate)."""
    return gate.sigmoid() if activation == "sigmoid" else silu(gate)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Unit(torch.autograd.Function):
    """x rsqrt(sum x² + eps): one pass forward and two backward, keeping its result and one number a row."""

    @staticmethod
    @own_precision
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        wide = _wide(x)
        scale = torch.linalg.vecdot(wide, wide).add_(eps).rsqrt_()[..., None]
        y = (wide * scale).to(x.dtype)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @own_precision
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        kept, scale = ctx.saved_tensors
        d, y = _wide(grads[0]), _wide(kept)
        along = torch.linalg.vecdot(d, y)[..., None]
        return torch.addcmul(d, y, along, value=-1).mul_(scale).to(kept.dtype), None


class _NarrowNorm(torch.autograd.Function):
    """x rsqrt(sum x² + eps) gain · activation(gate), computed in float32, with a 16-bit result.

    Keeps one 16-bit number for each of x, x itself or its unit vector, the gate, and one number a row.
    """

    @staticmethod
    @own_precision
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        gate: Tensor | None,
        activation: str,
        eps: float,
        dtype: torch.dtype,
    ) -> Tensor:
        scale = _squares(x).add_(eps).rsqrt_()
        unit = x * scale  # float32
        ctx.exact, ctx.activation, ctx.dtype, ctx.given = x.element_size() == 2, activation, dtype, x.dtype
        ctx.save_for_backward(x if ctx.exact else unit.to(dtype), scale, gain, gate)
        return _scaled(unit, gain, gate, activation, dtype)

    @staticmethod
    def again(node: Any) -> Tensor:
        """The result; where x had more bits than the unit vector that is kept, one rounding away."""
        kept, scale, gain, gate = node.saved_tensors
        unit = kept * scale if node.exact else kept
        return _scaled(unit, gain, gate, node.activation, node.dtype)

    @staticmethod
    @once_differentiable
    @own_precision
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        forget(ctx)
        kept, scale, gain, gate = ctx.saved_tensors
        unit = kept * scale if ctx.exact else kept.float()
        d, dgate = grads[0], None
        if gate is not None:
            wide = gate.float()
            act = activated(wide, ctx.activation)
            dgate = _through_gate(d * (unit * gain), wide, act, ctx.activation).to(gate.dtype)
            d = d * act
        pairs = d * unit
        along = (pairs @ gain)[..., None]
        dx = torch.addcmul(d * gain, unit, along, value=-1).mul_(scale)
        return dx.to(ctx.given), pairs.flatten(0, -2).sum(0), dgate, None, None, None


def _squares(x: Tensor) -> Tensor:
    """x [..., D] -> its squared length [..., 1], float32."""
    if x.device.type == "cpu":
        wide = x.float()
        return torch.linalg.vecdot(wide, wide)[..., None]
    # one pass; vecdot would be a product of matrices for each row
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()


def _scaled(unit: Tensor, gain: Tensor, gate: Tensor | None, activation: str, dtype: torch.dtype) -> Tensor:
    """unit gain activation(gate), computed in float32, in `dtype`."""
    if gate is None:
        y = torch.empty(unit.shape, dtype=dtype, device=unit.device)
        return torch.mul(unit, gain, out=y)  # one pass, in float32
    return (unit * gain).mul_(activated(gate.float(), activation)).to(dtype)


def _through_gate(d: Tensor, gate: Tensor, act: Tensor, activation: str) -> Tensor:
    """The gradient of the gate, from that of its activation `act`."""
    if activation == "sigmoid":
        return torch.ops.aten.sigmoid_backward(d, act)
    return torch.ops.aten.silu_backward(d, gate)
