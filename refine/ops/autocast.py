"""Products and functions whose dtypes autocast does not change, forward and backward.

Shape legend: ... any leading dimensions, the same in both factors · I, J, K rows and columns.

`with torch.autocast(enabled=False)` covers a forward pass only. The backward pass runs where the user calls it; inside
an autocast region the gradients of norms and states would be products rounded to bfloat16.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine.ops.without_graph import run

F = TypeVar("F", bound=Callable[..., Any])


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a linear layer would multiply `x` here."""
    device = x.device.type
    autocast = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if autocast else x.dtype


def own_precision(function: F) -> F:
    """Run `function` outside autocast, on the device of its first tensor: for both passes of an autograd.Function."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        device = next(x.device.type for x in args if isinstance(x, Tensor))
        if not torch.is_autocast_enabled(device):
            return function(*args)
        with torch.autocast(device, enabled=False):
            return function(*args)

    return run  # type: ignore[return-value]


@contextmanager
def tf32_products(device: torch.device, wanted: bool = True) -> Iterator[None]:
    """With `wanted`, products of float32 matrices on a GPU round their factors to 11 bits in the block (TF32, eight
    times faster on an H100). Nothing changes on a CPU."""
    if not wanted or device.type == "cpu":
        yield
        return
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def product(a: Tensor, b: Tensor, tf32: bool = False) -> Tensor:
    """a [..., I, K] @ b [..., K, J] -> [..., I, J], in their dtype; so are its gradients. `tf32`: see
    `tf32_products`."""
    return run(_Product, a, b, tf32)


class _Product(torch.autograd.Function):
    @staticmethod
    @own_precision
    def forward(ctx: Any, a: Tensor, b: Tensor, tf32: bool) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.device, ctx.tf32 = a.device, tf32
        with tf32_products(a.device, tf32):
            return a @ b

    @staticmethod
    @once_differentiable
    @own_precision
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, b = ctx.saved_tensors
        wants_a, wants_b = ctx.needs_input_grad[:2]
        with tf32_products(ctx.device, ctx.tf32):
            return d @ b.mT if wants_a else None, a.mT @ d if wants_b else None, None
