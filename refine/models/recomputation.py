"""Whether a forward pass runs again for the backward pass, under gradient checkpointing: what it counts was counted."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from refine.ops.made_again import everything_is_kept

_here = threading.local()  # of this thread: a backward pass on a GPU has one of its own


def recomputing() -> bool:
    """Whether this forward pass is a second one of the same tokens."""
    return getattr(_here, "again", False)


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """In the block, forward passes count as second ones do: not at all."""
    before, _here.again = recomputing(), True
    try:
        yield
    finally:
        _here.again = before


@contextlib.contextmanager
def _again() -> Iterator[None]:
    with uncounted(), everything_is_kept():
        yield


def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """`context_fn` of torch.utils.checkpoint.checkpoint: the contexts of the first pass and of the second."""
    return everything_is_kept(), _again()
