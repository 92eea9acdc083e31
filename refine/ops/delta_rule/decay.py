"""What decays within a chunk where each head forgets by one number a token, and where nothing is forgotten.

Shape legend: m chunks times heads · C tokens of a chunk · K, V key and value width of a head.

`refine.ops.delta_rule.chunked` explains the factors D, e, f; `channel_decay` has the same interface for a decay per
key channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Decay:
    """The factors D, e, f of some chunks' log decay [m, C]; every method is the identity if that is None.

    Each exponent is summed separately: the difference of two longer sums would lose the decay of a few tokens in the
    rounding of many. The gradient, too, adds up only the pairs of tokens that have the decay between them.
    """

    def __init__(self, decay: Tensor | None) -> None:
        self.decay = decay
        if decay is not None:
            size = decay.shape[-1]
            self._since = decay.cumsum(-1).exp_()[..., None]
            self._to_end = sum_after(decay).exp_()[..., None]
            self._pairs = decay[..., None].expand(-1, -1, size).tril(-1).cumsum(-2).exp_()

    def since(self, x: Tensor) -> Tensor:
        """x [m, C, .] times e."""
        return x if self.decay is None else x * self._since

    def to_end(self, x: Tensor) -> Tensor:
        """x [m, C, .] times f."""
        return x if self.decay is None else x * self._to_end

    def over_chunk(self, states: Tensor, rows: slice) -> Tensor:
        """states [rows, K, V] times e_C of chunks `rows`."""
        return states if self.decay is None else states * self._since[rows, -1:]

    def of_over_chunk(self, starts: Tensor, dends: Tensor) -> Tensor | None:
        """The gradient of log e_C [m], from the states at the chunks' starts and the gradient of those at the ends."""
        return None if self.decay is None else (self.over_chunk(starts, slice(None)) * dends).sum((-1, -2))

    def products(self, q: Tensor, k: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """A and P [m, C, C]."""
        return self._interactions(k, beta), self.scores(q, k)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """P [m, C, C]."""
        return self._between(torch.bmm(q, k.mT)).tril_()

    def slopes(self, dscores: Tensor, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """From the gradient of P, which is changed in place, and P: what `add_pair_gradients` needs of them."""
        dpairs = None if self.decay is None else dscores * scores
        return self._between(dscores), dpairs

    def add_pair_gradients(
        self, given: tuple[Tensor, ...], slopes: tuple[Tensor, Tensor | None], da: Tensor, dq: Tensor, dk: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Add to dq and dk what comes through P and, for k_j, through A, given q, k, beta and beta K and dA.

        Returns Σ_j dA_ij D_ij k_j [m, C, K], of which dk lacks beta times, and the gradient of log D [m, C, C].
        """
        (q, k, beta, beta_k), (dscores, dpairs) = given, slopes
        if dpairs is not None:
            dpairs.addcmul_(da, self._interactions(k, beta))
        dq.baddbmm_(dscores, k)
        da = self._between(da)
        via_a = torch.bmm(da, k)
        dk.baddbmm_(dscores.mT, q).baddbmm_(da.mT, beta_k)
        return via_a, dpairs

    @staticmethod
    def gradient(pairs: Any, reading: tuple[Tensor, Tensor], to_end: Tensor, over_chunk: Tensor | None) -> Tensor:
        """Gradient of log decay [m, C] from that of log D [m, C, C]; reading, to_end [m, C, K]: the first less the
        second, and the third, add up over K to those of log e and log f; that of log e_C [m] (None: 0)."""
        since = reading[0].sum(-1) - reading[1].sum(-1)
        before = torch.zeros_like(pairs)  # [i, t]: over tokens j < t, whose pairs with token i >= t cross token t
        torch.cumsum(pairs[..., :-1], -1, out=before[..., 1:])
        crossing = before.tril_().sum(-2)
        crossing = crossing.add_(since).add_(sum_after(since)).add_(sum_before(to_end.sum(-1)))
        return crossing if over_chunk is None else crossing.add_(over_chunk[..., None])

    def _between(self, x: Tensor) -> Tensor:
        """x [m, C, C] times D, in place."""
        return x if self.decay is None else x.mul_(self._pairs)

    def _interactions(self, k: Tensor, beta: Tensor) -> Tensor:
        """A [m, C, C]."""
        return self._between(torch.bmm(k, k.mT).mul_(beta[..., None])).tril_(-1)


def sum_after(x: Tensor, dim: int = -1) -> Tensor:
    """The sum of the later elements at each place along `dim`."""
    after = x.flip(dim).cumsum(dim).roll(1, dim)
    after.select(dim, 0).zero_()
    return after.flip(dim)


def sum_before(x: Tensor, dim: int = -1) -> Tensor:
    """The sum of the earlier elements at each place along `dim`."""
    before, size = torch.zeros_like(x), x.shape[dim] - 1
    before.narrow(dim, 1, size).copy_(x.narrow(dim, 0, size).cumsum(dim))
    return before
