"""Tokens that rows share: each row is a range of them, so that rows of one text hold no copies.

Shape legend: L tokens of the tensors · R rows · G documents of a read · N new tokens · S slots of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from refine.ops.layout import Layout, moved_together

Tokens = dict[str, Tensor]
Ranges = tuple[tuple[int, int], ...]


class Spans:
    """Row r is tokens[name][from:to], (from, to) = ranges[r]; tokens[name] [L, ...]. Immutable."""

    def __init__(self, tokens: Tokens, ranges: Sequence[tuple[int, int]]) -> None:
        self.tokens, self.ranges = tokens, tuple(ranges)

    @classmethod
    def end_to_end(cls, tokens: Tokens, counts: Sequence[int]) -> Spans:
        """Rows of counts[r] tokens, one after the other."""
        ends = [0, *accumulate(counts)]
        return cls(tokens, [(ends[r], ends[r + 1]) for r in range(len(counts))])

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens of each row."""
        return tuple(to - start for start, to in self.ranges)

    @property
    def empty(self) -> bool:
        """Whether no row has a token."""
        return not any(self.counts)

    @property
    def held(self) -> list[tuple[int, int]]:
        """The tokens of all rows, as ranges that do not touch, in order."""
        union: list[tuple[int, int]] = []
        for start, to in sorted(at for at in set(self.ranges) if at[1] > at[0]):
            if union and start <= union[-1][1]:
                union[-1] = (union[-1][0], max(to, union[-1][1]))
            else:
                union.append((start, to))
        return union

    @property
    def nbytes(self) -> int:
        """Bytes of the rows' tokens; what rows share counts once [bytes]."""
        return self.token_bytes * sum(to - start for start, to in self.held)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token [bytes]."""
        return sum(x.shape[1:].numel() * x.element_size() for x in self.tokens.values())

    def select(self, rows: Sequence[int]) -> Spans:
        """The rows `rows`; nothing is copied."""
        return Spans(self.tokens, [self.ranges[r] for r in rows])

    def last(self, counts: Sequence[int]) -> Spans:
        """The last counts[r] tokens of each row."""
        return Spans(self.tokens, [(to - n, to) for (_, to), n in zip(self.ranges, counts, strict=True)])

    def map(self, function: Callable[[Tensor], Tensor]) -> Spans:
        """`function` applied to every tensor."""
        return Spans({name: function(x) for name, x in self.tokens.items()}, self.ranges)

    def trimmed(self) -> Spans:
        """The same rows; if others hold most of the tensors, with a copy of theirs alone. Rows share as before."""
        held = self.held
        if next(iter(self.tokens.values())).shape[0] <= 2 * sum(to - start for start, to in held):
            return self
        before = list(accumulate((to - start for start, to in held), initial=0))
        shifts = [(at, place - at[0]) for at, place in zip(held, before, strict=False)]
        moves = {(a, b): next((n for (c, d), n in shifts if c <= a and b <= d), -a) for a, b in set(self.ranges)}
        parts = {name: [x[start:to] for start, to in held] or [x[:0]] for name, x in self.tokens.items()}
        return Spans(
            {name: torch.cat(part) for name, part in parts.items()},
            [(a + moves[a, b], b + moves[a, b]) for a, b in self.ranges],
        )

    def extended(self, layout: Layout, new: Tokens) -> Spans:
        """Row g, then the `new` [N, ...] tokens of document g of `layout`: the tokens are `new` itself if no row has
        any, else copies."""
        if self.empty:
            return Spans.end_to_end(new, layout.lengths)
        length = next(iter(self.tokens.values())).shape[0]
        index = layout.once(
            ("extended", self.ranges, length), lambda: moved_together([self._order(layout, length)], layout.device)[0]
        )
        both = {name: torch.cat([self.tokens[name].to(x.dtype), x]) for name, x in new.items()}
        counts = [old + n for old, n in zip(self.counts, layout.lengths, strict=True)]
        return Spans.end_to_end({name: x.index_select(0, index) for name, x in both.items()}, counts)

    def _order(self, layout: Layout, length: int) -> Tensor:
        """Indices into [tokens, new] that lay old and new tokens of each row end to end; `length` of `tokens`."""
        parts = []
        for (a, b), start, n in zip(self.ranges, layout.starts, layout.lengths, strict=True):
            parts += [torch.arange(a, b), torch.arange(length + start, length + start + n)]
        return torch.cat(parts)

    @staticmethod
    def cat(parts: Sequence[Spans]) -> Spans:
        """The rows of all `parts`. Tokens are copied only where parts have different ones, and then once."""
        distinct: list[Tokens] = []
        for part in parts:
            if not part.empty and not any(part.tokens is tokens for tokens in distinct):
                distinct.append(part.tokens)
        if not distinct:
            distinct = [parts[0].tokens]
        first = list(accumulate((next(iter(x.values())).shape[0] for x in distinct), initial=0))
        ranges: list[tuple[int, int]] = []
        for part in parts:
            shift = next((i for i, tokens in zip(first, distinct, strict=False) if tokens is part.tokens), None)
            ranges += [(0, 0) if shift is None or b <= a else (a + shift, b + shift) for a, b in part.ranges]
        if len(distinct) == 1:
            return Spans(distinct[0], ranges)
        return Spans({name: torch.cat([x[name] for x in distinct]) for name in distinct[0]}, ranges)
