"""Rows that are picked from a tensor after its use, without a gradient as long as the tensor for each pick.

Shape legend: X rows of the tensor · R picked rows.

A tap picks a few rows of what a layer kept of the text. The gradient of plain indexing is a zero-filled tensor as long
as the text, for every pick, and those of all layers would exist at once, because the rollouts' backward pass comes
first. Here the gradients of picked rows wait in a box until the backward pass reaches the tensor itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Box = list[tuple[Tensor, Tensor]]


class LaterRows:
    """`pick` gives rows of x [X, ...]. Use `tensor` in place of x from here on: it carries all gradients to x."""

    def __init__(self, x: Tensor) -> None:
        self.box: Box | None = None
        self.tensor = self._values = x
        if torch.is_grad_enabled() and x.requires_grad:
            self.box, self._values = [], x.detach()
            self.tensor, self._handle = _Tee.apply(x, self.box)

    def pick(self, index: Tensor) -> Tensor:
        """Rows index[0], index[1], ... (int64 [R], repeats allowed) -> [R, ...], with gradient."""
        if self.box is None:
            return self._values.index_select(0, index)
        return _Pick.apply(self._handle, self._values, index, self.box)


class _Tee(torch.autograd.Function):
    """x -> x and a handle: a number that every pick depends on, so that this backward comes after all of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, box: Box) -> tuple[Tensor, Tensor]:
        ctx.box, ctx.shape, ctx.options = box, x.shape, {"dtype": x.dtype, "device": x.device}
        ctx.set_materialize_grads(False)
        return x.view_as(x), x.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, None]:
        own = dx is None
        for index, gradient in ctx.box:
            if dx is None:
                dx = torch.zeros(ctx.shape, **ctx.options)
            dx = dx.index_add_(0, index, gradient) if own else dx.index_add(0, index, gradient)
            own = True
        ctx.box.clear()
        return dx, None


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, handle: Tensor, values: Tensor, index: Tensor, box: Box) -> Tensor:
        # not save_for_backward: gradient checkpointing would run the block again to restore it
        ctx.box, ctx.index = box, index
        return values.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.box.append((ctx.index, gradient))
        return gradient.new_zeros(()), None, None, None
