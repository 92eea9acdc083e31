"""Muon's orthogonalisation: five Newton–Schulz steps with the coefficients of LaCT's release (arXiv 2505.23884).

Shape legend: P matrices (any number of leading dimensions) · I rows · J columns.

The steps multiply small singular values, and their rounding, by up to 490. So two ways of reading with Muon agree to
1e-10 in float64, but not to 1e-5 in float32, however the steps are computed. With everything else in float64, rounding
the embeddings of a two-layer model to float32 once moves its gradients by 2e-6 to 1e-5 if a chunk is longer than a fast
head is wide, and by 3e-5 to 1e-3 if it is about as long (12 seeds).

The release takes the steps in bfloat16. Against float64 that is off by 2 to 6 % on gradients of random tokens (by 18 %
where a chunk is shorter than a head is wide), and float32 with its products in TF32 by 0.1 to 0.2 %: less than what
rounding the gradient to bfloat16 does alone.
A backward pass takes the steps again: only their argument is kept, where autograd would keep sixteen of
its size.
`by_steps` is the twin, and what a CPU computes; on a device a step is three launches, each a product with what is added
to it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine.ops.autocast import own_precision, product, tf32_products
from refine.ops.without_graph import run

COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def orthogonalise(gradient: Tensor, dtype: torch.dtype | None = None, tf32: bool = False) -> Tensor:
    """gradient [..., I, J] with its singular values pushed towards 1, by X <- aX + (bA + cA²)X with A = XXᵀ.

    Computed in `dtype` (bfloat16 in the published models; default: the gradient's own), returned in the gradient's.
    `tf32`: products of float32 on a GPU round their factors to TF32. A matrix of zeros stays zero.
    """
    x = gradient if dtype is None else gradient.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = run(_Steps, _normalised(x), tf32)
    return (x.mT if tall else x).to(gradient.dtype)


def by_steps(x: Tensor) -> Tensor:
    """The twin: x [..., I, J], I <= J, operation by operation; autograd goes through every step."""
    return _one_by_one(_normalised(x))


def _normalised(x: Tensor) -> Tensor:
    return x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)


def _one_by_one(x: Tensor) -> Tensor:
    for a, b, c in COEFFICIENTS:
        square = product(x, x.mT)
        x = a * x + product(b * square + c * product(square, square), x)
    return x


class _Steps(torch.autograd.Function):
    """The steps of normalised x [..., I, J], I <= J. Keeps x only. On a CPU the twin's to the last bit."""

    @staticmethod
    @own_precision
    def forward(ctx: Any, x: Tensor, tf32: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.device, ctx.tf32 = x.device, tf32
        if x.device.type == "cpu":
            return _one_by_one(x)
        with tf32_products(x.device, tf32):
            return _fused(x)[-1].view(x.shape)

    @staticmethod
    @once_differentiable
    @own_precision
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if ctx.device.type == "cpu":
            with torch.enable_grad():
                free = x.detach().requires_grad_()
                return torch.autograd.grad(_one_by_one(free), free, d)[0], None
        with tf32_products(ctx.device, ctx.tf32):
            return _fused_backward(x, d), None


def _fused(x: Tensor) -> list[Tensor]:
    """The matrices [P, I, J] before each step and after the last."""
    found = [x.reshape(-1, *x.shape[-2:])]
    for a, b, c in COEFFICIENTS:
        _, polynomial = _squares(found[-1], b, c)
        found.append(torch.baddbmm(found[-1], polynomial, found[-1], beta=a))
    return found


def _squares(x: Tensor, b: float, c: float) -> tuple[Tensor, Tensor]:
    """A = x xᵀ and bA + cA²."""
    square = x @ x.mT
    return square, torch.baddbmm(square, square, square, beta=b, alpha=c)


def _fused_backward(x: Tensor, d: Tensor) -> Tensor:
    """The gradient of x [..., I, J] from that of the last step's result."""
    before = _fused(x)
    d = d.reshape(before[0].shape)
    for y, (a, b, c) in zip(before[-2::-1], COEFFICIENTS[::-1], strict=True):
        square, polynomial = _squares(y, b, c)  # both symmetric
        to_polynomial = d @ y.mT
        to_square = torch.baddbmm(to_polynomial, to_polynomial, square, beta=b, alpha=c)
        to_square = torch.baddbmm(to_square, square, to_polynomial, alpha=c)
        d = torch.baddbmm(d, polynomial, d, beta=a)
        d = torch.baddbmm(d, to_square + to_square.mT, y)
    return d.view(x.shape)
