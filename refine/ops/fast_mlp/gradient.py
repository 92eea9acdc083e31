"""The elementwise part of the fast MLP's gradient, with its own derivative, which keeps only its inputs.

Shape legend: ... any leading dimensions (documents, heads, tokens) · E inner width of the fast MLP.

For f(k) = w1 (silu(w0 k) ∘ (w2 k)) write g = w0 k, u = w2 k, i = w1ᵀ v. Then the gradients of <f(k), v> are
dg ⊗ k for w0 with dg = i u silu'(g), du ⊗ k for w2 with du = i silu(g), and v ⊗ a for w1 with a = silu(g) u.
For a second derivative autograd would keep fourteen tensors of the size of g; this keeps g, u and i.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from refine.ops.autocast import own_precision
from refine.ops.without_graph import run


def weighted_sides(gate_up: Tensor, inner: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
    """gate_up [..., 2E] (g, u), inner [..., E] (i), rates [..., 3] for w0, w1, w2 -> (rate0 dg, rate2 du) [..., 2E]
    and rate1 a [..., E], in the dtype of gate_up; computed in the widest dtype of the three."""
    return run(_WeightedSides, gate_up, inner, rates)


class _WeightedSides(torch.autograd.Function):
    @staticmethod
    @own_precision
    def forward(ctx: Any, gate_up: Tensor, inner: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(gate_up, inner, rates)
        (gate, up), i, (rate0, rate1, rate2) = _unpacked(gate_up, inner, rates)
        share, act = _silu(gate)
        sides = torch.cat([_slope(share, act).mul_(i).mul_(up).mul_(rate0), (i * act).mul_(rate2)], dim=-1)
        return sides.to(gate_up.dtype), act.mul_(up).mul_(rate1).to(gate_up.dtype)

    @staticmethod
    @own_precision
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate_up, inner, rates = ctx.saved_tensors
        (gate, up), i, (rate0, rate1, rate2) = _unpacked(gate_up, inner, rates)
        share, act = _silu(gate)
        slope = _slope(share, act)
        to_dg, to_du = grads[0].to(i.dtype).chunk(2, dim=-1)
        to_a = grads[1].to(i.dtype)
        gate_side, up_side = up * slope, torch.mul(to_du, act)
        d_inner = (to_dg * gate_side).mul_(rate0).addcmul_(up_side, rate2)
        via_dg, via_du, via_a = to_dg * i, to_du * i, to_a * up
        d_rates = torch.stack([_dot(via_dg, gate_side), _dot(via_a, act), _dot(up_side, i)], dim=-1)
        via_dg.mul_(rate0)
        bend = torch.addcmul(share, act, share, value=-1).add_(slope).mul_(share.neg_().add_(1))  # silu''
        d_both = torch.empty_like(gate_up, dtype=i.dtype, memory_format=torch.contiguous_format)
        d_gate, d_up = d_both.chunk(2, dim=-1)
        torch.mul(via_du.mul_(rate2).addcmul_(via_a, rate1), slope, out=d_gate)
        d_gate.addcmul_(bend.mul_(up), via_dg)
        torch.mul(via_dg, slope, out=d_up)
        d_up.addcmul_(act.mul_(to_a), rate1)
        return d_both.to(gate_up.dtype), d_inner.to(inner.dtype), d_rates.to(rates.dtype)


def _unpacked(gate_up: Tensor, inner: Tensor, rates: Tensor) -> tuple[tuple[Tensor, ...], Tensor, tuple[Tensor, ...]]:
    """(g, u), i and the three rates [..., 1], all in the widest dtype."""
    wide = torch.promote_types(gate_up.dtype, rates.dtype)
    return gate_up.to(wide).chunk(2, dim=-1), inner.to(wide), rates.to(wide).unsqueeze(-2).unbind(-1)


def _silu(gate: Tensor) -> tuple[Tensor, Tensor]:
    """sigmoid(g) and silu(g)."""
    share = torch.sigmoid(gate)
    return share, gate * share


def _slope(share: Tensor, act: Tensor) -> Tensor:
    """silu'(g) = sigmoid(g) + silu(g) (1 - sigmoid(g))."""
    return torch.addcmul(share, act, 1 - share)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a, b)
