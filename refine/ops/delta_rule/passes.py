"""The passes around the delta rule by flash-linear-attention's fused kernels: each reads and writes its tensors once.

Shape legend: P tokens of all documents, each after the W - 1 inputs before it · F channels · W width of the convolution
              H heads · K, V widths of a head.

PyTorch would make five and more passes of each, most of them in float32. The twins are `refine.ops.short_convolution`
and `refine.ops.rms_norm`. fla-core has these kernels since 0.6.0; they read 16-bit tensors, and compute in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine.ops.autocast import own_precision
from refine.ops.delta_rule import fla
from refine.ops.made_again import forget
from refine.ops.rms_norm import RMSNorm
from refine.ops.without_graph import run


@dataclass(frozen=True)
class Fused:
    """fla's functions: x [1, P, F] and weight [F, W] (with `activation`); x [.., K] (`eps`); x, gate and weight [V];
    gate and up."""

    convolution: Callable[..., Any]
    unit_length: Callable[..., Tensor]
    norm: Callable[..., Tensor]
    gated_norm: Callable[..., Tensor]
    swiglu: Callable[[Tensor, Tensor], Tensor]


@functools.cache
def functions() -> Fused:
    """Import fla's functions (seconds; needs triton)."""
    from fla.modules.activations import swiglu
    from fla.modules.causal_conv1d import causal_conv1d
    from fla.modules.norm.fused_norm_gate import rms_norm_gated
    from fla.modules.norm.l2norm import l2norm
    from fla.modules.norm.layernorm import rms_norm

    return Fused(causal_conv1d, l2norm, rms_norm, rms_norm_gated, swiglu)


def fused(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether fla's kernels make the passes over tensors of `dtype` on `device`: where they compute the delta rule."""
    return dtype.itemsize == 2 and fla.chosen(device, dtype)


def present(x: Tensor) -> bool:
    """Whether fla's kernels may make passes over x in any model: 16 bits on a GPU, unless PyTorch is asked for."""
    return x.element_size() == 2 and x.device.type == "cuda" and fla.allowed() and _there()


@functools.cache
def _there() -> bool:
    return fla.lacking() is None


def convolution(padded: Tensor, weight: Tensor, silu: bool) -> Tensor:
    """padded [P, F] 16-bit, weight [F, W] -> [P - W + 1, F] 16-bit, as `short_convolution`. Keeps only its input.

    All documents are read as one: outputs that would see two of them are dropped by the caller.
    """
    more = weight.shape[1] - 1
    found = functions().convolution(padded[None], weight.contiguous(), activation="silu" if silu else None)
    y: Tensor = found[0] if isinstance(found, tuple) else found
    return y.squeeze(0)[more:]


def unit_length(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x [N, H, K] 16-bit -> as `rms_norm.unit_length`."""
    return functions().unit_length(x.contiguous(), eps)


def normed(norm: RMSNorm, o: Tensor, gate: Tensor | None, activation: str) -> Tensor:
    """o, gate [N, H, V] 16-bit -> norm(o) activation(gate), of o's dtype, as `norm(o, o.dtype, gate, activation)`."""
    gain = norm.gain(torch.float32)
    found: Tensor = run(_NormedAgain, o.contiguous(), gain, gate, activation, norm.eps)
    return found


class _NormedAgain(torch.autograd.Function):
    """fla's norm, from whose inputs the result can be made again."""

    @staticmethod
    def forward(ctx: Any, o: Tensor, gain: Tensor, gate: Tensor | None, activation: str, eps: float) -> Tensor:
        ctx.save_for_backward(o, gain, gate)
        ctx.activation, ctx.eps = activation, eps
        return _norm(o, gain, gate, activation, eps)

    @staticmethod
    def again(node: Any) -> Tensor:
        """The result."""
        o, gain, gate = node.saved_tensors
        return _norm(o, gain, gate, node.activation, node.eps)

    @staticmethod
    @once_differentiable
    @own_precision
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        forget(ctx)
        o, gain, gate = ctx.saved_tensors

        def norm(o: Tensor, gain: Tensor, gate: Tensor | None = None) -> Tensor:
            return _norm(o, gain, gate, ctx.activation, ctx.eps)

        given = (o, gain) if gate is None else (o, gain, gate)
        do, dgain, *dgate = gradients(norm, given, grads[0])
        return do, dgain, dgate[0] if dgate else None, None, None


def gradients(function: Callable[..., Tensor], given: tuple[Tensor, ...], d: Tensor) -> tuple[Tensor, ...]:
    """The gradients of `given` from that of `function(*given)`, which runs again."""
    leaves = [x.detach().requires_grad_() for x in given]
    with torch.enable_grad():
        y = function(*leaves)
    return torch.autograd.grad(y, leaves, d.contiguous())


def _norm(o: Tensor, gain: Tensor, gate: Tensor | None, activation: str, eps: float) -> Tensor:
    if gate is None:
        return functions().norm(o, gain, None, eps=eps)
    name = "sigmoid" if activation == "sigmoid" else "swish"
    return functions().gated_norm(o, gate, gain, None, activation=name, eps=eps)


def call_all(heads: int, value_heads: int, key: int, value: int, device: torch.device, width: int = 4) -> None:
    """Make all passes of a layer over some zeros, forward and backward: to compile their kernels.

    width: of the convolution; all published models have 4.
    """

    def new(*size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.zeros(*size, dtype=dtype, device=device, requires_grad=True)

    # triton compiles for lengths that 16 divides and for others: texts come with width - 1 earlier inputs
    tokens, norm = fla.EVERY, RMSNorm(value, 1e-5).to(device)
    made = [
        convolution(new(tokens + width - 1, channels), new(channels, width, dtype=torch.float32), True)
        for channels in sorted({heads * key, value_heads * value})
    ]
    made += [unit_length(new(tokens, heads, key)), functions().swiglu(new(tokens, key), new(tokens, key))]
    for gate in (None, "silu", "sigmoid"):
        o, given = (new(tokens, value_heads, value) for _ in range(2))
        made.append(normed(norm, o, given if gate else None, gate or "silu"))
    sum(y.float().sum() for y in made).backward()  # type: ignore[union-attr]
