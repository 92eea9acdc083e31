"""Results that are made again in the backward pass, instead of being kept for it.

A linear layer keeps its input for the gradient of its weight. Where that input is a cheap elementwise result (a norm, a
SwiGLU) whose own inputs are kept anyway, the backward pass can make it again.

A function takes part by a static method `again(node) -> Tensor`, which makes its result from what `node`, its context,
has saved.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

SMALL = 1 << 20  # numbers: below, as where a token is read at a time, the memory is not worth the host's time
VIEWS = ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0")
_here = threading.local()


@contextlib.contextmanager
def everything_is_kept() -> Iterator[None]:
    """In the block, `without_keeping` keeps what the module keeps.

    For gradient checkpointing: it drops everything by itself, and must see every tensor that is saved to do so.
    """
    before, _here.off = getattr(_here, "off", False), True
    try:
        yield
    finally:
        _here.off = before


def without_keeping(module: nn.Module, x: Tensor) -> Tensor:
    """`module(x)`. Where x is a 16-bit result of a function that can make it again, it is not kept for the backward
    pass; small ones are. x may be a view of that result with all its numbers in their order."""
    if x.element_size() > 2 or x.numel() < SMALL or not torch.is_grad_enabled() or getattr(_here, "off", False):
        return module(x)
    node = x.grad_fn
    while node is not None and type(node).__name__ in VIEWS:
        node = node.next_functions[0][0]
    if not hasattr(getattr(node, "_forward_cls", None), "again"):
        return module(x)
    start, size, dtype = x.data_ptr(), x.numel(), x.dtype

    def pack(saved: Tensor) -> Any:
        same = saved.data_ptr() == start and saved.numel() == size and saved.dtype == dtype
        return _Later(node, saved.shape) if same and saved.is_contiguous() else saved

    with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
        return module(x)


class _Later:
    """The result of `node`, in a shape."""

    def __init__(self, node: Any, shape: torch.Size) -> None:
        self.node, self.shape = node, shape


@torch.no_grad()
def _unpack(packed: Any) -> Tensor:
    if not isinstance(packed, _Later):
        return packed  # type: ignore[no-any-return]
    node = packed.node
    made = getattr(node, "made", None)
    if made is None:  # once for all layers that read it
        made = node.made = node._forward_cls.again(node)
    return made.view(packed.shape)


def forget(ctx: Any) -> None:
    """For the backward pass of a function with `again`: its result is no longer needed."""
    ctx.made = None
