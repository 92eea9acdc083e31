"""What the chosen experts make of each token: tokens sorted by expert, one product for each expert that was hit.

Shape legend: N tokens · E experts · k experts of a token · S = N k rows, sorted by expert
              D hidden size · I inner width of an expert.

`mix_by_token` is the twin: each token by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from refine.ops.autocast import compute_dtype, own_precision
from refine.ops.swiglu import swiglu_joined
from refine.ops.without_graph import run

GROUPED = (torch.bfloat16, torch.float16, torch.float32)  # dtypes of torch's grouped products


def mix(x: Tensor, gate_up: Tensor, down: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    """x [N, D], gate_up [E, 2I, D] (gate first), down [E, D, I], experts [N, k] int64, weights [N, k] -> [N, D]:
    the sum over its experts of weight · down(silu(gate x) · up x), in the dtype in which a linear layer would answer.

    On a GPU the host does not wait for the device in 16 bits. Sums have a fixed order in both passes."""
    dtype = compute_dtype(x)
    k = experts.shape[1]
    order = experts.flatten().argsort(stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    counts = load(experts, gate_up.shape[0])
    grouped = _has_grouped(x.device, dtype, gate_up)
    sizes: Any = counts.cumsum(0).to(torch.int32) if grouped else counts.tolist()
    product: Callable[[Tensor, Tensor, Any], Tensor] = _grouped if grouped else _one_by_one
    with torch.autocast(x.device.type, enabled=False):
        rows = run(_Sorted, x.to(dtype), order, inverse, k)
        inner = swiglu_joined(product(rows, gate_up.to(dtype), sizes))
        # weighed here, where a row has I numbers, not D; the sum over k is in at least float32
        inner = (inner * weights.flatten()[order][:, None]).to(dtype)
        return run(_Summed, product(inner, down.to(dtype), sizes), order, inverse, k)


def load(experts: Tensor, number: int) -> Tensor:
    """experts [N, k] -> [E = number] int64: the tokens of each. Unlike torch.bincount it waits for no device."""
    chosen = experts.flatten()
    return torch.zeros(number, dtype=torch.int64, device=chosen.device).scatter_add_(0, chosen, torch.ones_like(chosen))


def _has_grouped(device: torch.device, dtype: torch.dtype, gate_up: Tensor) -> bool:
    """Whether torch's grouped products take such tensors: rows must begin at multiples of 16 bytes."""
    inner, hidden = gate_up.shape[1] // 2, gate_up.shape[2]
    aligned = all(width * dtype.itemsize % 16 == 0 for width in (inner, hidden))
    if device.type != "cuda" or dtype not in GROUPED or not aligned or not hasattr(F, "grouped_mm"):
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _grouped(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """rows [S, K], weight [E, M, K], ends [E] int32: where each expert's rows end -> [S, M]."""
    return F.grouped_mm(rows, weight.mT, offs=ends)


def _one_by_one(rows: Tensor, weight: Tensor, sizes: list[int]) -> Tensor:
    """As `_grouped`, with sizes[e] rows of each expert."""
    return run(_OneByOne, rows, weight, sizes)


class _OneByOne(torch.autograd.Function):
    """Slices of `weight` by autograd would each have a gradient of the size of all experts."""

    @staticmethod
    @own_precision
    def forward(ctx: Any, rows: Tensor, weight: Tensor, sizes: list[int]) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.sizes = sizes
        out = rows.new_empty(rows.shape[0], weight.shape[1])
        for e, part in _hit(sizes):
            torch.mm(rows[part], weight[e].T, out=out[part])
        return out

    @staticmethod
    @once_differentiable
    @own_precision
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, weight = ctx.saved_tensors
        d_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for e, part in _hit(ctx.sizes):
            if d_rows is not None:
                torch.mm(d[part], weight[e], out=d_rows[part])
            if d_weight is not None:
                torch.mm(d[part].T, rows[part], out=d_weight[e])
        return d_rows, d_weight, None


def _hit(sizes: list[int]) -> list[tuple[int, slice]]:
    """The experts that have rows, and which."""
    found, start = [], 0
    for e, size in enumerate(sizes):
        if size:
            found.append((e, slice(start, start + size)))
        start += size
    return found


class _Sorted(torch.autograd.Function):
    """x [N, D] -> [S, D]: each token once for each of its experts, in `order`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.k = k
        return x.index_select(0, order // k)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        return _sum_of_each(d, inverse, ctx.k), None, None, None


class _Summed(torch.autograd.Function):
    """y [S, D], in `order` -> [N, D]: the sum of each token's k rows. The reverse of `_Sorted`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, order: Tensor, inverse: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(order)
        ctx.k = k
        return _sum_of_each(y, inverse, k)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None, None, None]:
        (order,) = ctx.saved_tensors
        return d.index_select(0, order // ctx.k), None, None, None


def _sum_of_each(rows: Tensor, inverse: Tensor, k: int) -> Tensor:
    wide = torch.promote_types(rows.dtype, torch.float32)
    return rows.index_select(0, inverse).unflatten(0, (-1, k)).sum(1, dtype=wide).to(rows.dtype)


def mix_by_token(x: Tensor, gate_up: Tensor, down: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    """The twin of `mix`."""
    rows = []
    for n in range(x.shape[0]):
        y = torch.zeros_like(x[n])
        for e, weight in zip(experts[n].tolist(), weights[n], strict=True):
            gate, up = (gate_up[e] @ x[n]).chunk(2)
            y = y + weight * (down[e] @ (F.silu(gate) * up))
        rows.append(y)
    return torch.stack(rows) if rows else torch.zeros_like(x)
