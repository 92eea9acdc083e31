"""What decays within a chunk where every key channel forgets by a number of its own (Kimi Delta Attention).

Shape legend: m chunks times heads, s of one pass · C tokens of a chunk, c of a sub-chunk, a before it
              K, V key and value width of a head.

The decay from token j to token i stands inside the product, P(x, y)_ij = Σ_k x_ik y_jk D_ijk, and splits into a factor
of i and one of j only where one may grow without bound. So a chunk is cut into sub-chunks. From an earlier sub-chunk,
D_ijk = e^(from the sub-chunk's start to i) e^(from j to that start), both at most 1, and P is a matrix product. Within
a sub-chunk the c × c × K factors are formed. No decay is too strong for this, and no token sees a later one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from refine.ops.delta_rule.decay import Decay, sum_after, sum_before

SUB_CHUNK = 16  # tokens of a sub-chunk
FORMED = {"cpu": 1 << 17, "cuda": 1 << 26}  # factors that are formed at once; on a CPU they fit a core's cache


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
            x = torch.stack([q[rows, here], beta_k[rows, here]], -2)  # [s, c, 2, K]
            dp = torch.stack([slopes[0][rows, here], da[rows, here]], -2)  # [s, c, 2, C]
            dx = torch.zeros_like(x)
            for add in (self._add_near, self._add_far):
                add(rows, here, (x, k[rows], dp), (dx, dk[rows], dlog[rows]))
            dq[rows, here] += dx[..., 0, :]
            via_a[rows, here] += dx[..., 1, :]
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
            x = torch.stack([one[rows, here] for one in xs], -1)  # [s, c, K, x]
            near = (self._near(rows, here).mul_(y[rows, None, here]) @ x).unbind(-1)
            for p, one in zip(out, near, strict=True):
                p[rows, here, here] = one
            if here.start:
                after, until = self._far(rows, here)
                earlier = (y[rows, : here.start] * until).mT
                for p, one in zip(out, x.unbind(-1), strict=True):
                    p[rows, here, : here.start] = (one * after) @ earlier
        return out

    def _add_near(
        self, rows: slice, here: slice, given: tuple[Tensor, Tensor, Tensor], to_fill: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        """Add the gradients through pairs of tokens of one sub-chunk, given x, y, dP, to those of x, y, log decay."""
        (x, y, dp), (dx, dy, dlog) = given, to_fill
        factors, y, dp = self._near(rows, here), y[:, None, here], dp[..., here]
        dx += dp @ (factors * y)
        of_factors = (dp.mT @ x).mul_(factors)  # [s, i, j, K], and times y_j the gradient of log D
        dy[:, here] += of_factors.sum(1)
        before = of_factors.mul_(y).cumsum_(2)[:, 1:, :-1]  # [i, t]: over tokens j < t
        crossing = _lower(before.shape[1], y, 0)
        dlog[:, here][:, 1:] += before.mul_(crossing).sum(1)

    def _add_far(
        self, rows: slice, here: slice, given: tuple[Tensor, Tensor, Tensor], to_fill: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        """The same, through pairs of a token of the sub-chunk with one of an earlier sub-chunk."""
        if not here.start:
            return
        (x, y, dp), (dx, dy, dlog) = given, to_fill
        after, until = self._far(rows, here)
        x, y, dp = x * after[:, :, None], y[:, : here.start] * until, dp[..., : here.start]
        of_x = (dp.flatten(1, 2) @ y).view_as(x)
        of_y = dp.flatten(1, 2).mT @ x.flatten(1, 2)
        dx += of_x * after[:, :, None]
        dy[:, : here.start] += of_y * until
        of_after = x.mul_(of_x).sum(2)
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

    def _near(self, rows: slice, here: slice) -> Tensor:
        """D within a sub-chunk [s, c, c, K], zero for later tokens."""
        decay = self.decay[rows, here]
        size = decay.shape[1]
        between = decay[:, :, None] * _lower(size, decay, -1)
        return between.cumsum_(1).exp_().mul_(_lower(size, decay, 0))

    def _far(self, rows: slice, here: slice) -> tuple[Tensor, Tensor]:
        """The decay from the sub-chunk's start to each of its tokens [s, c, K], and from each earlier token to that
        start [s, a, K]."""
        after = self.decay[rows, here].cumsum(1).exp_()
        return after, sum_after(self.decay[rows, : here.start], 1).exp_()


def _lower(size: int, like: Tensor, diagonal: int) -> Tensor:
    """[size, size, 1]: 1 on and below the diagonal."""
    return torch.ones(size, size, dtype=like.dtype, device=like.device).tril_(diagonal)[..., None]


Factors = Decay | ChannelDecay


def factors_of(decay: Tensor | None) -> Factors:
    """The factors of log decay [m, C], [m, C, K], or None."""
    return ChannelDecay(decay) if decay is not None and decay.ndim == 3 else Decay(decay)
