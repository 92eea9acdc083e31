"""What decays within a chunk where every key channel forgets by a number of its own (Kimi Delta Attention).

Shape legend: m chunks times heads, s of one pass · C tokens of a chunk, c of a sub-chunk, a before it
              p pairs of tokens of a sub-chunk · K, V key and value width of a head.

The decay from token j to token i stands inside the product, P(x, y)_ij = Σ_k x_ik y_jk D_ijk, and splits into a factor
of i and one of j only where one may grow without bound. So a chunk is cut into sub-chunks. From an earlier sub-chunk,
D_ijk = e^(from the sub-chunk's start to i) e^(from j to that start), both at most 1, and P is a matrix product. Within
a sub-chunk the p × K factors are formed. No decay is too strong for this, and no token sees a later one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from refine.ops.delta_rule.decay import Decay, sum_after, sum_before
from refine.ops.layout import moved_together

SUB_CHUNK = 16  # tokens of a sub-chunk
FORMED = {"cpu": 1 << 18, "cuda": 1 << 26}  # factors that are formed at once; on a CPU they fit a core's cache


class ChannelDecay:
    """As Decay, for log decay [m, C, K]: D [m, C, C, K], e and f [m, C, K]. Exponents and gradients are summed up as
    there."""

    def __init__(self, decay: Tensor) -> None:
        self.decay = decay
        self._since = decay.cumsum(-2).exp_()
        self._to_end = sum_after(decay, -2).exp_()

    def since(self, x: Tensor) -> Tensor:
        """x [m, C, K] times e."""
        return x * self._since

    def to_end(self, x: Tensor) -> Tensor:
        """x [m, C, K] times f."""
        return x * self._to_end

    def over_chunk(self, states: Tensor, rows: slice) -> Tensor:
        """states [rows, K, V] times e_C of chunks `rows`."""
        return states * self._since[rows, -1, :, None]

    def of_over_chunk(self, starts: Tensor, dends: Tensor) -> Tensor:
        """As Decay's: [m, K]."""
        return (self.over_chunk(starts, slice(None)) * dends).sum(-1)

    def products(self, q: Tensor, k: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """A and P(q, k) [m, C, C]."""
        both = self._products((k, q), k)
        return both[0].mul_(beta[..., None]).tril_(-1), both[1]

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """P(q, k) [m, C, C]."""
        return self._products((q,), k)[0]

    def slopes(self, dscores: Tensor, scores: Tensor) -> tuple[Tensor, None]:
        """The gradient of P(q, k) is what `add_pair_gradients` needs."""
        return dscores, None

    def add_pair_gradients(
        self, given: tuple[Tensor, ...], slopes: tuple[Tensor, Tensor | None], da: Tensor, dq: Tensor, dk: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As Decay's, with the gradient of log decay [m, C, K] that comes through D in the place of that of log D."""
        q, k, _, beta_k = given
        via_a, dlog = torch.zeros_like(k), torch.zeros_like(k)
        for rows, here in self._parts():
            x = torch.cat([q[rows, here], beta_k[rows, here]], 1)  # [s, 2c, K]
            dp = torch.cat([slopes[0][rows, here], da[rows, here]], 1)  # [s, 2c, C]
            dx = torch.zeros_like(x)
            for add in (self._add_near, self._add_far):
                add(rows, here, (x, k[rows], dp), (dx, dk[rows], dlog[rows]))
            of_q, of_a = dx.chunk(2, 1)
            dq[rows, here] += of_q
            via_a[rows, here] += of_a
        return via_a, dlog

    @staticmethod
    def gradient(pairs: Any, reading: tuple[Tensor, Tensor], to_end: Tensor, over_chunk: Tensor | None) -> Tensor:
        """Gradient of log decay [m, C, K] from `pairs`, its part through D; reading, to_end [m, C, K]: the first less
        the second, and the third, are the gradients of log e and log f; that of log e_C [m, K] (None: 0)."""
        since = reading[0] - reading[1]
        total: Tensor = pairs.add_(since).add_(sum_after(since, -2)).add_(sum_before(to_end, -2))
        return total if over_chunk is None else total.add_(over_chunk[..., None, :])

    def _products(self, xs: tuple[Tensor, ...], y: Tensor) -> list[Tensor]:
        """P(x, y) [m, C, C] for each x [m, C, K]."""
        size = y.shape[1]
        out = [y.new_zeros(y.shape[0], size, size) for _ in xs]
        for rows, here in self._parts():
            pairs = Pairs.of(here.stop - here.start, y)
            near = self._near(rows, here, pairs).mul_(y[rows, here].index_select(1, pairs.earlier))
            for p, x in zip(out, xs, strict=True):
                later = x[rows, here].index_select(1, pairs.later)
                p[rows, here, here][pairs.places] = torch.linalg.vecdot(near, later)
            if here.start:
                after, until = self._far(rows, here)
                earlier = (y[rows, : here.start] * until).mT
                for p, x in zip(out, xs, strict=True):
                    p[rows, here, : here.start] = (x[rows, here] * after) @ earlier
        return out

    def _add_near(
        self, rows: slice, here: slice, given: tuple[Tensor, Tensor, Tensor], to_fill: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        """Add the gradients through pairs of tokens of one sub-chunk, given x, y, dP, to those of x, y, log decay.

        x: two of them, one after the other, and so its gradient, and dP.
        """
        (x, y, dp), (dx, dy, dlog) = given, to_fill
        size = here.stop - here.start
        pairs = Pairs.of(size, y)
        factors, y = self._near(rows, here, pairs), y[:, here].index_select(1, pairs.earlier)
        slopes = [one[:, pairs.later, here.start + pairs.earlier] for one in dp.chunk(2, 1)]  # [s, p] each
        # a sum over the pairs of each token is a product with a matrix of zeros and ones
        weighed = torch.cat([pairs.of_later * one[:, None] for one in slopes], 1)  # [s, 2c, p]
        dx += weighed @ (factors * y)
        later = [one.index_select(1, pairs.later) for one in x.chunk(2, 1)]
        of_factors = (later[0].mul_(slopes[0][..., None])).addcmul_(later[1], slopes[1][..., None]).mul_(factors)
        dy[:, here] += pairs.of_earlier @ of_factors
        dlog[:, here] += pairs.between.mT @ of_factors.mul_(y)

    def _add_far(
        self, rows: slice, here: slice, given: tuple[Tensor, Tensor, Tensor], to_fill: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        """The same, through pairs of a token of the sub-chunk with one of an earlier sub-chunk."""
        if not here.start:
            return
        (x, y, dp), (dx, dy, dlog) = given, to_fill
        after, until = self._far(rows, here)
        after = torch.cat([after, after], 1)
        x, y, dp = x * after, y[:, : here.start] * until, dp[..., : here.start]
        of_x, of_y = dp @ y, dp.mT @ x
        dx += of_x * after
        dy[:, : here.start] += of_y * until
        of_after = torch.add(*x.mul_(of_x).chunk(2, 1))
        dlog[:, here] += of_after + sum_after(of_after, 1)
        dlog[:, : here.start] += sum_before(of_y.mul_(y), 1)

    def _parts(self) -> Iterator[tuple[slice, slice]]:
        """Some chunks and a sub-chunk of theirs, whose factors are formed at once."""
        chunks, size, width = self.decay.shape
        limit = FORMED.get(self.decay.device.type, FORMED["cuda"])
        step = max(1, limit // (min(size, SUB_CHUNK) ** 2 * width))
        for row in range(0, chunks, step):
            for first in range(0, size, SUB_CHUNK):
                yield slice(row, min(row + step, chunks)), slice(first, min(first + SUB_CHUNK, size))

    def _near(self, rows: slice, here: slice, pairs: Pairs) -> Tensor:
        """D of the pairs of tokens of a sub-chunk [s, p, K]."""
        return pairs.sums(self.decay[rows, here]).exp_()

    def _far(self, rows: slice, here: slice) -> tuple[Tensor, Tensor]:
        """The decay from the sub-chunk's start to each of its tokens [s, c, K], and from each earlier token to that
        start [s, a, K]."""
        after = self.decay[rows, here].cumsum(1).exp_()
        return after, sum_after(self.decay[rows, : here.start], 1).exp_()


@dataclass(frozen=True)
class Pairs:
    """The p pairs of tokens (i, j), j <= i, of a sub-chunk of c tokens: the one way in which its factors are held.

    later, earlier [p]: i and j. of_later, of_earlier [c, p]: 1 where the token is i, or j. between [p, c]: 1 for the
    tokens j < t <= i, whose decay lies between the two.
    """

    later: Tensor
    earlier: Tensor
    of_later: Tensor
    of_earlier: Tensor
    between: Tensor

    @property
    def places(self) -> tuple[slice, Tensor, Tensor]:
        """Where the pairs lie in [m, c, c]."""
        return slice(None), self.later, self.earlier

    @staticmethod
    def of(size: int, like: Tensor) -> Pairs:
        """The pairs of `size` tokens, at most SUB_CHUNK, for tensors like `like`."""
        return _kept_pairs(size, like.dtype, like.device)

    def first(self, size: int) -> Pairs:
        """The pairs of the first `size` tokens, which come first."""
        p = size * (size + 1) // 2
        return Pairs(
            self.later[:p], self.earlier[:p], self.of_later[:size, :p], self.of_earlier[:size, :p],
            self.between[:p, :size],
        )  # fmt: skip

    def sums(self, decay: Tensor) -> Tensor:
        """log decay [s, c, K] -> what lies between the tokens of each pair [s, p, K], each summed up separately."""
        return self.between @ decay if decay.device.type == "cpu" else self.running_sums(decay)

    def running_sums(self, decay: Tensor) -> Tensor:
        """`sums` without a product, which a GPU might make of rounded numbers (TF32)."""
        lower = decay.new_ones(decay.shape[1], decay.shape[1]).tril(-1)[..., None]
        return (decay[:, :, None] * lower).cumsum_(1)[:, self.later, self.earlier]


@functools.lru_cache(maxsize=64)
def _kept_pairs(size: int, dtype: torch.dtype, device: torch.device) -> Pairs:
    """Those of fewer tokens are views of those of SUB_CHUNK, which go to a device once."""
    if size < SUB_CHUNK:
        return _kept_pairs(SUB_CHUNK, dtype, device).first(size)
    with torch.inference_mode(False):  # made inside, they could not be used in training later
        indices = [*torch.tril_indices(size, size).unbind(), torch.arange(size)]
        later, earlier, tokens = moved_together(indices, device)
        of_later, of_earlier = ((tokens[:, None] == one).to(dtype) for one in (later, earlier))
        between = ((earlier[:, None] < tokens) & (tokens <= later[:, None])).to(dtype)
        return Pairs(later, earlier, of_later, of_earlier, between)


Factors = Decay | ChannelDecay


def factors_of(decay: Tensor | None) -> Factors:
    """The factors of log decay [m, C], [m, C, K], or None."""
    return ChannelDecay(decay) if decay is not None and decay.ndim == 3 else Decay(decay)
