"""Rows of a tensor worked on together: groups that share a state or a window, and blocks that fit a core's cache.

Shape legend: R rows · D distinct things shared · n rows of the largest group · F numbers of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from refine.ops.layout import on_device

CACHED_NUMBERS = 1 << 17  # numbers of a block; a few blocks of this size stay in a core's cache


def blocks(x: Tensor, numbers: int | None = None) -> list[slice]:
    """x [R, ...] -> consecutive slices of its rows, small enough for a core's cache; one slice on a GPU.

    A chain of elementwise steps that goes through x block by block finds its operands in the cache. numbers: those that
    a row becomes on its way, if they are more than its own.
    """
    rows = x.shape[0]
    numbers = x.numel() // max(1, rows) if numbers is None else numbers
    step = rows if x.device.type != "cpu" else max(1, CACHED_NUMBERS // max(1, numbers))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, max(1, step))]


class Groups:
    """Rows that share something, laid side by side, so that one product serves all of them.

    `shared[r]` names what row r shares with others. `distinct` lists the names in order of appearance.

    `gather` lays x [R, ...] out as [D, n, ...]: a view if the groups are of one size and in order; else
    small groups are filled up with their own first row. `scatter` is its inverse.
    """

    def __init__(self, shared: Sequence[Any], device: torch.device | str = "cpu") -> None:
        members: dict[Any, list[int]] = {}
        for row, name in enumerate(shared):
            members.setdefault(name, []).append(row)
        self.distinct = list(members)
        self.size = max(len(rows) for rows in members.values())
        padded = [rows + rows[:1] * (self.size - len(rows)) for rows in members.values()]
        order = [row for rows in padded for row in rows]
        self.in_order = order == list(range(len(shared)))
        if not self.in_order:
            back = {row: place for place, row in reversed(list(enumerate(order)))}
            both = on_device([*order, *(back[row] for row in range(len(shared)))], torch.device(device))
            self._order, self._back = both[: len(order)], both[len(order) :]

    def gather(self, x: Tensor) -> Tensor:
        """x [R, ...] -> [D, n, ...]."""
        x = x if self.in_order else x.index_select(0, self._order)
        return x.unflatten(0, (len(self.distinct), self.size))

    def scatter(self, x: Tensor) -> Tensor:
        """x [D, n, ...] -> [R, ...]."""
        x = x.flatten(0, 1)
        return x if self.in_order else x.index_select(0, self._back)
