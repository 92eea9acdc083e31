"""Long tensors worked on block by block, so that a chain of elementwise steps finds its operands in a core's cache.

Shape legend: n rows · F numbers of a row.
"""

from __future__ import annotations

from torch import Tensor

CACHED_NUMBERS = 1 << 17  # numbers of a block; a few such blocks stay in a core's cache


def blocks(x: Tensor) -> list[slice]:
    """Spans of rows of x [n, ...], in order; all rows at once where the device is no CPU."""
    rows = x.shape[0]
    step = rows if x.device.type != "cpu" else max(1, CACHED_NUMBERS * rows // max(1, x.numel()))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, max(1, step))]
