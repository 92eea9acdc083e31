"""The last tokens of each row (a window of keys and values, an unfinished chunk), as views into a read if possible.

Shape legend: R rows · L tokens of the pool · j own tokens of every row · G documents of a read · N new tokens
· T new tokens of every document, where equal · S slots of a compact row.

A row's tokens are pool[from:to], then its own. The pool is the read from which the row was tapped. All rows share it,
so a tap copies no token. Tokens that a row reads later (a rollout, decoding) are appended to `own`, which copies `own`,
up to `Lact.append_limit` = max(32, sqrt(2 max(window, chunk))) tokens. The read that exceeds this limit copies pool,
own and new tokens into a new pool. This limit minimises copying: appending copies half the limit for each token on
average, and a new pool copies the window once in a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from refine.ops.layout import Layout, moved_together, on_device

Tokens = dict[str, Tensor]


class RecentTokens:
    """Row r is pool[name][from:to], (from, to) = ranges[r], then own[name][r, skip[r]:].

    pool[name] [L, ...], own[name] [R, j, ...].
    """

    def __init__(
        self,
        pool: Tokens,
        ranges: Sequence[tuple[int, int]],
        own: Tokens | None = None,
        skip: Sequence[int] | None = None,
    ) -> None:
        self.pool, self.ranges = pool, tuple(ranges)
        rows = len(self.ranges)
        self.own = own if own is not None else {name: x.new_empty(rows, 0, *x.shape[1:]) for name, x in pool.items()}
        self.own_length = next(iter(self.own.values())).shape[1]
        self.skip = tuple(skip) if skip is not None else (0,) * rows

    @property
    def rows(self) -> int:
        """R."""
        return len(self.ranges)

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens of each row."""
        return tuple(to - start + self.own_length - s for (start, to), s in zip(self.ranges, self.skip, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of the rows' tokens; shared tokens count once."""
        shared = sum(to - start for start, to in set(self.ranges))
        pool = sum(x[:1].numel() * x.element_size() * shared for x in self.pool.values())
        return pool + sum(x.numel() * x.element_size() for x in self.own.values())

    def select(self, rows: Sequence[int]) -> RecentTokens:
        """The rows `rows`."""
        own = None
        if self.own_length:
            index = on_device(rows, next(iter(self.own.values())).device)
            own = {name: x.index_select(0, index) for name, x in self.own.items()}
        return RecentTokens(
            self.pool, [self.ranges[r] for r in rows], own, [self.skip[r] for r in rows] if own else None
        )

    def where(self, rows: Sequence[int | None]) -> RecentTokens:
        """The rows `rows`; None gives a row without tokens."""
        chosen = [0 if r is None else r for r in rows]
        some = self.select(chosen)
        ranges = [(0, 0) if r is None else at for r, at in zip(rows, some.ranges, strict=True)]
        skip = [self.own_length if r is None else s for r, s in zip(rows, some.skip, strict=True)]
        return RecentTokens(self.pool, ranges, some.own, skip)

    def map(self, function: Callable[[Tensor], Tensor]) -> RecentTokens:
        """`function` applied to every tensor."""
        pool, own = ({name: function(x) for name, x in tokens.items()} for tokens in (self.pool, self.own))
        return RecentTokens(pool, self.ranges, own, self.skip)

    def compact(self) -> RecentTokens:
        """The same tokens, copied: each row in S slots of a new pool, aligned at the last token, zeros before."""
        slots = max(self.counts)
        tokens = self._laid(range(self.rows))
        if len(set(self.counts)) > 1:
            ends = torch.tensor(self.counts).cumsum(0)
            index = (ends[:, None] + torch.arange(-slots, 0)).clamp(min=0).flatten()
            empty = (torch.arange(slots) < slots - torch.tensor(self.counts)[:, None]).flatten()
            device = next(iter(tokens.values())).device
            index, empty = moved_together([index, empty.long()], device)
            tokens = {name: _filled(x, index, empty.bool()) for name, x in tokens.items()}
        return RecentTokens(tokens, [((r + 1) * slots - n, (r + 1) * slots) for r, n in enumerate(self.counts)])

    def extended(self, documents: Sequence[int], layout: Layout, new: Tokens) -> Tokens:
        """The remembered and the `new` [N, ...] tokens of `documents`, end to end; document g continues row g."""
        everything = len(documents) == self.rows
        if not any(self.counts[g] for g in documents) and everything:
            return new
        old = self._laid(documents)
        key = ("extended", tuple(documents), self.counts)
        new_index, order = layout.once(key, lambda: moved_together(self._maps(documents, layout), layout.device))
        new = new if everything else {name: x.index_select(0, new_index) for name, x in new.items()}
        return {name: torch.cat([old[name].to(x.dtype), x]).index_select(0, order) for name, x in new.items()}

    def _laid(self, documents: Sequence[int]) -> Tokens:
        """The tokens of the rows `documents`, end to end."""
        device = next(iter(self.pool.values())).device
        of_pool = torch.cat([torch.arange(*self.ranges[g]) for g in documents])
        if not self.own_length:
            (of_pool,) = moved_together([of_pool], device)
            return {name: x.index_select(0, of_pool) for name, x in self.pool.items()}
        j = self.own_length
        of_own = torch.cat([torch.arange(g * j + self.skip[g], (g + 1) * j) for g in documents])
        lengths = [(to - start, j - self.skip[g]) for g in documents for start, to in (self.ranges[g],)]
        of_pool, of_own, order = moved_together([of_pool, of_own, _interleaved(lengths)], device)
        laid = {}
        for name, x in self.pool.items():
            parts = [
                x.index_select(0, of_pool),
                self.own[name].flatten(0, 1).index_select(0, of_own),
            ]
            laid[name] = torch.cat(parts).index_select(0, order)
        return laid

    def _maps(self, documents: Sequence[int], layout: Layout) -> tuple[Tensor, Tensor]:
        """Indices of the new tokens of `documents`, and the order that puts them after the remembered tokens."""
        new = [torch.arange(layout.starts[g], layout.starts[g] + layout.lengths[g]) for g in documents]
        return torch.cat(new), _interleaved([(self.counts[g], layout.lengths[g]) for g in documents])

    @staticmethod
    def cat(parts: Sequence[RecentTokens]) -> RecentTokens:
        """The rows of all `parts`, one after the other."""
        parts = [part.compact() for part in parts]
        pool = {name: torch.cat([part.pool[name] for part in parts]) for name in parts[0].pool}
        first = [0, *accumulate(next(iter(part.pool.values())).shape[0] for part in parts)]
        ranges = [(a + i, b + i) for i, part in zip(first, parts, strict=False) for a, b in part.ranges]
        return RecentTokens(pool, ranges)


class RecentTrace:
    """The recent tokens of G documents that read `new` [N, ...] after `before`, at any point of that read."""

    def __init__(self, before: RecentTokens, layout: Layout, new: Tokens) -> None:
        self.before, self.layout, self.new = before, layout, new

    @cached_property
    def laid(self) -> Tokens:
        """Remembered and new tokens of all documents, end to end."""
        return self.before.extended(range(self.layout.documents), self.layout, self.new)

    @cached_property
    def appended(self) -> Tokens:
        """Own and new tokens of each row, [G, j + T, ...]; all documents must have the same length."""
        new = {name: x.unflatten(0, (self.layout.documents, -1)) for name, x in self.new.items()}
        if not self.before.own_length:
            return new
        return {name: torch.cat([self.before.own[name].to(x.dtype), x], dim=1) for name, x in new.items()}

    def at(self, documents: Sequence[int], counts: Sequence[int], kept: Sequence[int], append: bool) -> RecentTokens:
        """The last kept[r] tokens of document documents[r] after counts[r] new ones, as views if possible.

        With `append` the new tokens become the rows' own, beside the old pool; else the pool is `laid`.
        """
        if append and len(set(counts)) == 1:
            return self._appended_at(documents, counts[0], kept)
        sums = [p + n for p, n in zip(self.before.counts, self.layout.lengths, strict=True)]
        starts = [0, *accumulate(sums)]
        ends = [starts[g] + self.before.counts[g] + n for g, n in zip(documents, counts, strict=True)]
        return RecentTokens(self.laid, [(end - n, end) for end, n in zip(ends, kept, strict=True)])

    def _appended_at(self, documents: Sequence[int], count: int, kept: Sequence[int]) -> RecentTokens:
        length = self.before.own_length + count
        own = {name: x[:, :length] for name, x in self.appended.items()}
        if list(documents) != list(range(self.layout.documents)):
            index = self.layout.tensor(documents)
            own = {name: x.index_select(0, index) for name, x in own.items()}
        ranges, skip = [], []
        for g, n in zip(documents, kept, strict=True):
            start, to = self.before.ranges[g]
            ranges.append((max(start, to - max(0, n - length)), to))
            skip.append(max(self.before.skip[g], length - n))
        return RecentTokens(self.before.pool, ranges, own, skip)


def _filled(x: Tensor, index: Tensor, empty: Tensor) -> Tensor:
    """x [L, ...] at `index` [M], with zeros where `empty` [M]."""
    return x.index_select(0, index).masked_fill(empty.view(-1, *[1] * (x.dim() - 1)), 0)


def _interleaved(lengths: Sequence[tuple[int, int]]) -> Tensor:
    """Indices into [all first parts, all second parts] that take the first and second part of each row in turn."""
    firsts = [0, *accumulate(a for a, _ in lengths)]
    seconds = list(accumulate((b for _, b in lengths), initial=firsts[-1]))
    parts = []
    for (a, b), i, k in zip(lengths, firsts, seconds, strict=False):
        parts += [torch.arange(i, i + a), torch.arange(k, k + b)]
    return torch.cat(parts)
