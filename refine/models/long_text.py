"""Reads a text of any length into the memory, piece by piece: what it takes does not grow with the text, but by what
the memory keeps of it.

Shape legend: B rows · T tokens · P tokens of a piece · D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from refine.errors import ModelError
from refine.models.memory import Memory

PIECE = 2**13
"""Tokens of a pass, all rows together. A longer pass is no faster, and takes memory that grows with it."""


@torch.no_grad()
def read_in_pieces(
    model: Any,
    tokens: Tensor,
    memory: Memory | None = None,
    piece: int | None = None,
    each: Callable[[int], None] = lambda read: None,
) -> tuple[Memory, Tensor]:
    """Read tokens [B, T] int64 after `memory`, `piece` tokens of each row in a pass (default: PIECE / B).

    Returns the memory of B rows after the text and the hidden state of its last token [B, D], as one `model.read` does.
    `each` is called after every pass with the number of tokens of a row that were read. Takes O(P) device memory:
    `tokens` may lie on another device than the model. Raises ModelError: no tokens, a piece below 1; as `model.read`.
    """
    rows, length = tokens.shape
    piece = max(1, PIECE // max(rows, 1)) if piece is None else piece
    if not length or piece < 1:
        raise ModelError(f"expected tokens to read and a piece of 1 token or more, not {length} tokens and {piece}")
    for first in range(0, length, piece):
        reading = model.read(tokens[:, first : first + piece].to(model.device), memory)
        memory, last = reading.memory, reading.hidden[:, -1]
        each(min(first + piece, length))
    assert memory is not None
    return memory, last
