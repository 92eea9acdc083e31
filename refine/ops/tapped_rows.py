"""Rows of a tensor that are picked after it was used, for a gradient that costs no copy of the whole tensor.

Shape legend: X rows of the tensor · R picked rows.

A tap picks a few rows of what a layer kept of the whole text. Plain indexing would answer each layer's pick with a
zero-filled gradient as long as the text, and all layers' at once, for the rollouts' backward pass comes first. Here
the picked rows' gradients wait in a box until the backward pass arrives at the tensor itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Box = list[tuple[Tensor, Tensor]]


class LaterRows:
    """`pick` gives rows of `whole` [X, ...], which is to be used in the place of the tensor that this was made from."""

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
        ctx.box, ctx.index = box, index  # not save_for_backward: checkpointing would read a block again to get it back
        return values.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.box.append((ctx.index, gradient))
        return gradient.new_zeros(()), None, None, None
