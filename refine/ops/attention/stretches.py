"""Windows of a pool in stretches: one product with a stretch of the pool serves all windows that lie in it. Each sees
its own tokens, and the rest of the stretch is masked.

Shape legend: as in `refine.ops.attention.shared_windows`, and m windows of a stretch · r = n T rows of a window
· S tokens of the longest stretch.

A window by itself costs a few launches in each product of each layer, for each token that a rollout samples: a GPU
would wait for them. So windows are joined, in their order, as long as the scores made, with the masked ones, cost less
than the launches they save. On a CPU calls are cheap and scores are not: there each window is read by itself.
Products are laid out heads first, so that the windows of a stretch are the rows of one product, without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from refine.ops.attention.shared_windows import Ranges, Windows

# scores of a head that one product with a stretch may make: on a GPU, about what the launches of another product cost
# (an estimate: 10 microseconds each, 0.1 ms for 2^20 scores of 24 heads, in a few passes). 0: each window by itself.
SCORES = {"cpu": 0, "cuda": 1 << 20}


def windows_of(ranges: Sequence[tuple[int, int]], device: torch.device | str, new_tokens: int) -> Windows:
    """The windows (from, to) of R rows in a pool, for reads of `new_tokens` a row: as the device reads them best."""
    scores = SCORES.get(torch.device(device).type, SCORES["cuda"])
    alone = Windows(ranges, device)
    if alone.even or len(alone.ranges) == 1 or not scores:
        return alone
    return Stretches(ranges, device, scores // (alone.groups.size * new_tokens))


@dataclass(frozen=True)
class Stretch:
    """The pool's tokens from `first` up to `last`, in which the windows `windows` lie."""

    windows: slice
    first: int
    last: int

    @property
    def length(self) -> int:
        """Its tokens."""
        return self.last - self.first

    def tokens(self, pool: Tensor) -> Tensor:
        """pool [L, H, K] -> [H, length, K], a view."""
        return pool[self.first : self.last].transpose(0, 1)

    def rows(self, x: Tensor) -> Tensor:
        """x [H, D, r, ...] -> the rows of its windows [H, m r, ...], a view if x has all windows of a layout."""
        return x[:, self.windows].flatten(1, 2)


class Stretches(Windows):
    """See the head of this file. `scores`: of one row of each window and one head, in a stretch at most, unless it has
    one window.

    The S places of a window are those of its stretch, aligned at the stretch's last token.
    """

    wide = True

    def __init__(self, ranges: Sequence[tuple[int, int]], device: torch.device | str, scores: int) -> None:
        super().__init__(ranges, device)
        self.even = False
        self.stretches = joined(self.ranges, scores)
        self.longest = max(stretch.length for stretch in self.stretches)
        self._behind = [max(0, s.last - to) for s in self.stretches for _, to in self.ranges[s.windows]]

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """[D] tokens of each window, and [D] those of its stretch after the window's last."""
        return self._counts(*self._behind)

    def laid(self, x: Tensor) -> Tensor:
        """x [D, n, T, H, K] -> [H, D, n, T, K]."""
        return x.permute(3, 0, 1, 2, 4)

    def back(self, x: Tensor) -> Tensor:
        """The inverse of `laid`."""
        return x.permute(1, 2, 3, 0, 4)

    def unseen(self, tokens: int, own: int, window: int) -> Tensor:
        """[D, 1, T, S + j + T], as in Windows."""
        return super().unseen(tokens, own, window)[:, 0]

    def _unseen_places(self, steps: Tensor, window: int) -> Tensor:
        length, behind = (x[:, None, None] for x in self.places)
        ago = torch.arange(self.longest - 1, -1, -1, device=steps.device) - behind
        return (ago < 0) | (ago >= length) | (ago > window - 2 - steps)

    def times_tokens(self, x: Tensor, pool: Tensor) -> Tensor:
        """x [H, D, r, K], pool [L, H, K] -> products with each place of the row's window, [H, D, r, S]."""
        found = [
            (stretch.rows(x) @ stretch.tokens(pool).mT).unflatten(1, (-1, x.shape[2])) for stretch in self.stretches
        ]
        if len(found) == 1:
            return found[0]
        out = x.new_zeros(*x.shape[:3], self.longest)
        for stretch, part in zip(self.stretches, found, strict=True):
            out[:, stretch.windows, :, self.longest - stretch.length :] = part
        return out

    def mix(self, weights: Tensor, pool: Tensor) -> Tensor:
        """weights [H, D, r, S] -> weighted sums of the windows' tokens, [H, D, r, K]."""
        parts = [self._own(stretch, weights) @ stretch.tokens(pool) for stretch in self.stretches]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).unflatten(1, weights.shape[1:3])

    def add(self, into: Tensor, weights: Tensor, x: Tensor) -> None:
        """Add weightsᵀ x to the windows, in place: weights [H, D, r, S], x [H, D, r, K], into [L, H, K]."""
        for stretch in self.stretches:
            stretch.tokens(into).add_(self._own(stretch, weights).mT @ stretch.rows(x))

    def _own(self, stretch: Stretch, weights: Tensor) -> Tensor:
        """weights [H, D, r, S] -> those of the stretch's rows and tokens, [H, m r, length]."""
        return stretch.rows(weights[..., self.longest - stretch.length :])


def joined(ranges: Ranges, scores: int) -> list[Stretch]:
    """The windows in their order; one is joined to those before as long as windows × tokens stay within `scores`."""
    found: list[Stretch] = []
    for d, (start, to) in enumerate(ranges):
        if found:
            before = found[-1]
            held = [(a, b) for a, b in ((before.first, before.last), (start, to)) if b > a] or [(start, to)]
            more = Stretch(slice(before.windows.start, d + 1), min(a for a, _ in held), max(b for _, b in held))
            if (d + 1 - more.windows.start) * more.length <= scores:
                found[-1] = more
                continue
        found.append(Stretch(slice(d, d + 1), start, to))
    return found
