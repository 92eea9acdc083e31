"""The delta rule on one chunk a document, where n documents in a row start from one state: the rollouts of a position.

Shape legend: D distinct states · n documents of a state · H heads · M = D n H · C tokens of a document
              K, V key and value width of a head.

The state is never laid out for each document: neither in the forward pass nor kept for the backward pass, which adds
up its gradient in place. Each product is the one that ChunkedDeltaRule makes, matrix by matrix, so results are equal
to it in every bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from refine.ops.autocast import own_precision
from refine.ops.delta_rule.channel_decay import factors_of
from refine.ops.delta_rule.chunked import after_steps, before_steps, inverse_unit_lower


class SharedStartDeltaRule(torch.autograd.Function):
    """q, k [M, C, K], v [M, C, V], beta [M, C], log decay [M, C] or [M, C, K] (or None), state [D H, K, V]
    -> o, u [M, C, V]."""

    @staticmethod
    @own_precision
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor | None, state: Tensor, n: int, heads: int
    ) -> tuple[Tensor, Tensor]:
        factors, rows = factors_of(decay), _Rows(state, n, heads)
        inverse = k.new_empty(*k.shape[:2], k.shape[1])
        interactions, scores = factors.products(q, k, beta)
        inverse_unit_lower(interactions, out=inverse)
        error, o = torch.empty_like(v), torch.empty_like(v)
        reading, asking = factors.since(k), factors.since(q)
        for i in range(n):
            rows.put(error, i, torch.baddbmm(rows.of(v, i), rows.of(reading, i), state, alpha=-1))
            rows.put(o, i, torch.bmm(rows.of(asking, i), state))
        u = torch.bmm(inverse * beta[:, None, :], error)
        scale = q.shape[-1] ** -0.5
        o.baddbmm_(scores, u, beta=scale, alpha=scale)
        ctx.save_for_backward(q, k, beta, decay, inverse, error, u, state)
        ctx.n, ctx.heads = n, heads
        ctx.set_materialize_grads(False)
        return o, u

    @staticmethod
    @own_precision
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, beta, decay, inverse, error, u, state = ctx.saved_tensors
        do, du_tapped = grads
        factors, rows = factors_of(decay), _Rows(state, ctx.n, ctx.heads)
        do, du, slopes = before_steps(do, q, k, u, factors)
        du = du if du_tapped is None else du.add_(du_tapped)
        beta_k = k * beta[..., None]
        r = torch.bmm(inverse.mT, du)
        dstate, *of_starts = rows.backward(factors.since(q), factors.since(beta_k), do, r)
        of_ends = torch.zeros_like(k), None  # no chunk follows
        results = [None if x is None else torch.empty_like(x) for x in (q, k, u, beta, decay)]
        found = slopes, r, beta_k
        after_steps((q, k, beta, error, u), factors, found, (of_starts[0], of_starts[1]), of_ends, results)
        return *results, dstate, None, None


class _Rows:
    """Document i of each state's n, for all states at once: M = D n H matrices, of which D H belong to it."""

    def __init__(self, state: Tensor, n: int, heads: int) -> None:
        self.state, self.n, self.heads = state, n, heads

    def of(self, x: Tensor, i: int) -> Tensor:
        """x [M, ...] -> [D H, ...]."""
        return x.unflatten(0, (-1, self.n, self.heads))[:, i].flatten(0, 1)

    def put(self, x: Tensor, i: int, values: Tensor) -> None:
        """Write values [D H, ...] into x [M, ...]."""
        x.unflatten(0, (-1, self.n, self.heads))[:, i] = values.unflatten(0, (-1, self.heads))

    def backward(self, asking: Tensor, reading: Tensor, do: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """asking, reading [M, C, K] of the state, do, r [M, C, V] -> the state's gradient [D H, K, V], added up over
        its documents, and do Sᵀ and r Sᵀ [M, C, K]."""
        total = torch.zeros_like(self.state)
        from_state, read_back = torch.empty_like(asking), torch.empty_like(asking)
        for i in range(self.n):
            do_i, r_i = self.of(do, i), self.of(r, i)
            ds = torch.bmm(self.of(asking, i).mT, do_i)
            total.add_(torch.baddbmm(ds, self.of(reading, i).mT, r_i, alpha=-1))
            self.put(from_state, i, torch.bmm(do_i, self.state.mT))
            self.put(read_back, i, torch.bmm(r_i, self.state.mT))
        return total, from_state, read_back


class SharedStarts:
    """The states at the start of every chunk, in the form of LaterRows, of which `n` chunks in a row share one.

    state [D, H, K, V], with its own gradient."""

    def __init__(self, state: Tensor, n: int) -> None:
        self.state, self.n = state, n

    @property
    def tensor(self) -> Tensor:
        """[D n, H, K, V], laid out."""
        return self.state.repeat_interleave(self.n, 0)

    def pick(self, index: Tensor) -> Tensor:
        """The states of chunks index [R] int64 -> [R, H, K, V]."""
        return self.state.index_select(0, index // self.n)
