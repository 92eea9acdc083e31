"""silu(gate) · up. Keeps only its inputs; autograd would keep silu(gate) too, and read and write more.

Shape legend: ... any leading dimensions · E inner width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from refine.ops.delta_rule import passes
from refine.ops.made_again import forget
from refine.ops.row_groups import blocks
from refine.ops.without_graph import run


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """gate, up [..., E] -> [..., E]."""
    return run(_SwiGLU, gate, up)


def swiglu_joined(gate_up: Tensor) -> Tensor:
    """gate and up side by side, [..., 2E] -> [..., E]; their gradients are side by side, too."""
    return run(_Joined, gate_up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return passes.functions().swiglu(gate, up) if passes.present(gate) else _forward(gate, up)

    @staticmethod
    def again(node: Any) -> Tensor:
        """The result."""
        gate, up = node.saved_tensors
        return passes.functions().swiglu(gate, up) if passes.present(gate) else _forward(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, Tensor]:
        forget(ctx)
        gate, up = ctx.saved_tensors
        if passes.present(gate):
            d_gate, d_up = passes.gradients(passes.functions().swiglu, (gate, up), d)
            return d_gate, d_up
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
        _backward(d, gate, up, d_gate, d_up)
        return d_gate, d_up


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return _forward(*gate_up.chunk(2, dim=-1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        d_both = torch.empty_like(gate_up)
        _backward(d, *gate_up.chunk(2, dim=-1), *d_both.chunk(2, dim=-1))
        return d_both


def _forward(gate: Tensor, up: Tensor) -> Tensor:
    out = torch.empty_like(up, memory_format=torch.contiguous_format)
    for rows in blocks(out):
        torch.mul(silu(gate[rows]), up[rows], out=out[rows])
    return out


def _backward(d: Tensor, gate: Tensor, up: Tensor, d_gate: Tensor, d_up: Tensor) -> None:
    for rows in blocks(d):
        act = silu(gate[rows])
        torch.mul(d[rows], act, out=d_up[rows])
        torch.mul(d[rows], up[rows], out=act)
        torch.ops.aten.silu_backward.grad_input(act, gate[rows], grad_input=d_gate[rows])
