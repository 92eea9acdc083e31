"""Where the rows of a read find their prefixes in a pool of tokens: which of them are worked on at once.

Shape legend: R rows · N new tokens of all rows, T of a row · L tokens of the pool · S tokens of the longest prefix of a
place · M own tokens of all rows, J of a row: those read since the prefix, then the new ones · A query heads
· h heads of keys and values · g = A / h · K width of a head · D prefixes of a place · n rows that share a prefix
· t tokens of a block.

Each place costs a few dozen small operations, forward and backward. So three kinds of rows share one: rows with the
same prefix (rollouts of a position); rows whose prefixes are alike and evenly apart (a batch that is decoded); and rows
whose prefixes begin together and end near each other (rollouts of several positions of a text). The last see the
longest of these, masked beyond their own: worth it while the masked scores cost less than the places they save.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refine.ops.layout import Layout, moved_together, on_device

Ranges = Sequence[tuple[int, int]]
BLOCK = {"cpu": 1 << 21, "cuda": 1 << 26}  # scores that are made at once
# scores of a head that cost as much as the operations of a place: estimates (0.2 ms of calls, 40 ns a score of 8 heads)
MASKED = {"cpu": 1 << 12, "cuda": 1 << 20}


@dataclass(frozen=True)
class Lengths:
    """The tokens of the prefix of each of a place's rows: all[rows], where `all` has those of all places, which go to a
    device together."""

    all: tuple[int, ...]
    rows: slice


@dataclass(frozen=True)
class Place:
    """D prefixes of S tokens, `step` apart in the pool from `first`; n rows each, with T new of J own tokens.

    `new`, `own`: where the rows' tokens lie, once they are in the order of the places. `lengths`: the tokens of each
    row's prefix, where D is 1 and they differ; S is the longest of them.
    """

    prefixes: int
    rows: int
    first: int
    step: int
    length: int
    new_tokens: int
    own_tokens: int
    new: slice
    own: slice
    lengths: Lengths | None = None

    def far(self, pool: Tensor) -> Tensor:
        """pool [L, h, K] -> the prefixes [D, S, h, K], a view."""
        token, head, width = pool.stride()
        size = (self.prefixes, self.length, *pool.shape[1:])
        return pool.as_strided(
            size, (self.step * token, token, head, width), pool.storage_offset() + self.first * token
        )

    def near(self, own: Tensor) -> Tensor:
        """own [M, h, K] -> the rows' own tokens [D, n, J, h, K], a view."""
        return own[self.own].unflatten(0, (self.prefixes, self.rows, self.own_tokens))

    def queries(self, x: Tensor, heads: int) -> Tensor:
        """x [N, A, K] -> [D, h, n, g, T, K], a view."""
        rows = x[self.new].unflatten(0, (self.prefixes, self.rows, self.new_tokens)).unflatten(3, (heads, -1))
        return rows.permute(0, 3, 1, 4, 2, 5)

    def blocks(self, x: Tensor, heads: int) -> Iterator[slice]:
        """The new tokens in blocks whose scores are made at once."""
        scores = self.prefixes * self.rows * x.shape[1] * (self.length + self.own_tokens)
        step = max(1, BLOCK.get(x.device.type, BLOCK["cuda"]) // scores)
        return (slice(a, min(a + step, self.new_tokens)) for a in range(0, self.new_tokens, step))

    def back_to_prefix(self, device: torch.device) -> Tensor:
        """[S], or [n, 1, 1, S] where lengths differ: how far each of the prefix's tokens stands before a row's first
        own token; 0 or less beyond the row's prefix."""
        steps = torch.arange(self.length, device=device)
        if self.lengths is None:
            return self.length - steps
        return on_device(self.lengths.all, device)[self.lengths.rows, None, None, None] - steps


class Places:
    """R rows in the order in which their prefixes can be worked on; made once a read for all layers.

    Row r: prefix ranges[r] of the pool, own_counts[r] own tokens (all rows' lie end to end), the last of which are the
    layout.lengths[r] new ones.
    """

    def __init__(self, layout: Layout, ranges: Ranges, own_counts: Sequence[int]) -> None:
        groups = list(_groups(layout, ranges, own_counts))
        rows = [r for group in groups for r in group.rows]
        self.places = list(_places(groups))
        in_order = rows == list(range(len(rows)))
        self.new_order: Tensor | None = None
        self.own_order: Tensor | None = None
        if not in_order:
            new, own = (_spans(counts, rows) for counts in (layout.lengths, own_counts))
            self.new_order, self.own_order, self.back = moved_together([new, own, new.argsort()], layout.device)


@dataclass(frozen=True)
class _Group:
    """Rows whose prefixes begin at `first`, with equally many new and own tokens; as in Place."""

    first: int
    length: int
    tokens: tuple[int, int]
    rows: list[int]
    lengths: tuple[int, ...]

    @property
    def differ(self) -> bool:
        """Whether some rows' prefixes are shorter."""
        return self.lengths[0] < self.length

    def follows(self, others: Sequence[_Group]) -> bool:
        """Whether it lies behind the others, alike, disjoint and as far apart as they are."""
        before, apart = others[-1], self.first - others[-1].first
        alike = (self.length, self.tokens, len(self.rows)) == (before.length, before.tokens, len(before.rows))
        even = len(others) == 1 or apart == before.first - others[-2].first
        return alike and even and apart >= self.length and not (self.differ or before.differ)


def _groups(layout: Layout, ranges: Ranges, own_counts: Sequence[int]) -> Iterator[_Group]:
    """The rows, those with the same prefix together, and those with prefixes that end near each other."""
    begin: dict[tuple[int, tuple[int, int]], dict[int, list[int]]] = {}
    for r, (a, b) in enumerate(ranges):
        first, length = (a, b - a) if b > a else (0, 0)
        prefixes = begin.setdefault((first, (layout.lengths[r], own_counts[r])), {})
        prefixes.setdefault(length, []).append(r)
    masked = MASKED.get(layout.device.type, MASKED["cuda"])
    for (first, tokens), prefixes in begin.items():
        for together in _near_each_other(sorted(prefixes.items()), masked // tokens[0]):
            rows = [r for _, some in together for r in some]
            lengths = tuple(length for length, some in together for _ in some)
            yield _Group(first, lengths[-1], tokens, rows, lengths)


def _near_each_other(prefixes: Sequence[tuple[int, list[int]]], masked: int) -> Iterator[list[tuple[int, list[int]]]]:
    """Prefixes (length, rows) by length, in runs: each but the first adds at most `masked` unseen tokens of rows."""
    together: list[tuple[int, list[int]]] = []
    for length, rows in prefixes:
        unseen = sum((length - shorter) * len(some) for shorter, some in together)
        if unseen > masked * len(together):
            yield together
            together = []
        together.append((length, rows))
    yield together


def _places(groups: Sequence[_Group]) -> Iterator[Place]:
    """Groups that follow each other, alike and at equal distances, become one place."""
    every = tuple(length for group in groups for length in group.lengths)
    row = new = own = taken = 0
    while taken < len(groups):
        group, count = groups[taken], 1
        while taken + count < len(groups) and groups[taken + count].follows(groups[taken : taken + count]):
            count += 1
        rows, (new_tokens, own_tokens) = count * len(group.rows), group.tokens
        spans = slice(new, new + rows * new_tokens), slice(own, own + rows * own_tokens)
        step = groups[taken + 1].first - group.first if count > 1 else group.length
        lengths = Lengths(every, slice(row, row + rows)) if group.differ else None
        yield Place(count, len(group.rows), group.first, step, group.length, new_tokens, own_tokens, *spans, lengths)
        row, new, own, taken = row + rows, spans[0].stop, spans[1].stop, taken + count


def _spans(counts: Sequence[int], rows: Sequence[int]) -> Tensor:
    """Indices that bring tokens, counts[r] of each row end to end, into the order `rows`."""
    parts = torch.arange(sum(counts)).split(list(counts))
    return torch.cat([parts[r] for r in rows])
