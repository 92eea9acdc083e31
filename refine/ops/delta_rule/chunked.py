"""The delta rule on chunks, forward and backward by hand.

Shape legend: G documents · H heads · M chunks times heads (m of one group of steps) · C tokens of a chunk
              K, V key and value width of a head.

By hand because autograd would make thousands of small graph nodes of the loop over chunks, and because one triangular
product R = (I + A)⁻ᵀ dU gives the gradients of beta, k, v and A together. Both passes process the chunks in groups of
steps that fit a core's cache; only what the backward pass needs is as long as the text.

Notation, for one chunk (see refine.ops.delta_rule.rule): S state at its start, D_ij decay from token j to token i,
e_i decay since the chunk's start, f_i decay from token i to the chunk's end (all 1 without decay);
E = V − e K S the errors, U = (I + A)⁻¹ beta E, P = tril(D ∘ Q Kᵀ), O = (e Q S + P U) / sqrt(K), S' = e_C S + (f K)ᵀ U.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from refine.ops.autocast import own_precision
from refine.ops.delta_rule.chunks import Chunks


class ChunkedDeltaRule(torch.autograd.Function):
    """q, k [M, C, K], v [M, C, V], beta and log decay [M, C] (or None), state [G H, K, V] in
    the order of the chunks (or None) -> o and u [M, C, V], state at the start of every chunk [M, K, V]."""

    @staticmethod
    @own_precision
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        decay: Tensor | None,
        state: Tensor | None,
        chunks: Chunks,
        heads: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        o, u, error = (torch.empty_like(v) for _ in range(3))
        inverse = k.new_empty(*k.shape[:2], k.shape[1])
        starts = k.new_empty(k.shape[0], k.shape[2], v.shape[2])
        first = starts[: chunks.active[0] * heads]
        if state is None:
            first.zero_()
        else:
            first.copy_(state)
        for steps in chunks.groups(heads):
            part = slice(chunks.offset[steps.start] * heads, chunks.offset[steps.stop] * heads)
            factors = Decay(None if decay is None else decay[part])
            inverse_unit_lower(interactions(k[part], beta[part], factors), out=inverse[part])
            _forward_steps(steps, chunks, heads, (k, v, beta, inverse), factors, (error, u, starts))
            scores = factors.pairs(torch.bmm(q[part], k[part].mT)).tril_()
            torch.bmm(factors.since(q[part]), starts[part], out=o[part])
            scale = q.shape[-1] ** -0.5
            o[part].baddbmm_(scores, u[part], beta=scale, alpha=scale)
        ctx.save_for_backward(q, k, beta, decay, inverse, error, u, starts)
        ctx.chunks, ctx.heads, ctx.has_state = chunks, heads, state is not None
        ctx.set_materialize_grads(False)
        return o, u, starts

    @staticmethod
    @own_precision
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, beta, decay, inverse, error, u, starts = ctx.saved_tensors
        chunks, heads = ctx.chunks, ctx.heads
        results = [torch.empty_like(x) if x is not None else None for x in (q, k, u, beta, decay)]
        after: Tensor | None = None  # gradient of the states with which the later group starts
        for steps in reversed(chunks.groups(heads)):
            part = slice(chunks.offset[steps.start] * heads, chunks.offset[steps.stop] * heads)
            saved, given, to_fill = (
                [None if x is None else x[part] for x in tensors]
                for tensors in ((q, k, beta, decay, inverse, error, u, starts), grads, results)
            )
            after = _backward_group(steps, chunks, heads, saved, given, to_fill, after)
        return *results, after if ctx.has_state else None, None, None


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

    @staticmethod
    def gradient(pairs: Tensor, since: Tensor, to_end: Tensor, over_chunk: Tensor) -> Tensor:
        """Gradient of log decay [m, C] from those of log D [m, C, C], log e and log f [m, C], log e_C [m]."""
        before = torch.zeros_like(pairs)  # [i, t]: over tokens j < t, whose pairs with token i >= t cross token t
        torch.cumsum(pairs[..., :-1], -1, out=before[..., 1:])
        crossing = before.tril_().sum(-2)
        earlier = torch.zeros_like(to_end)
        torch.cumsum(to_end[..., :-1], -1, out=earlier[..., 1:])
        return crossing.add_(since).add_(sum_after(since)).add_(earlier).add_(over_chunk[..., None])

    def pairs(self, x: Tensor) -> Tensor:
        """x [m, C, C] times D, in place."""
        return x if self.decay is None else x.mul_(self._pairs)

    def since(self, x: Tensor) -> Tensor:
        """x [m, C, .] times e."""
        return x if self.decay is None else x * self._since

    def to_end(self, x: Tensor) -> Tensor:
        """x [m, C, .] times f."""
        return x if self.decay is None else x * self._to_end

    def over_chunk(self, states: Tensor, rows: slice) -> Tensor:
        """states [rows, K, V] times e_C of chunks `rows`."""
        return states if self.decay is None else states * self._since[rows, -1:]


def sum_after(x: Tensor) -> Tensor:
    """x [..., C] -> [..., C], the sum of the later elements at each place."""
    after = x.flip(-1).cumsum(-1).roll(1, -1)
    after[..., 0] = 0
    return after.flip(-1)


def interactions(k: Tensor, beta: Tensor, factors: Decay) -> Tensor:
    """A [m, C, C]."""
    return factors.pairs(torch.bmm(k, k.mT).mul_(beta[..., None])).tril_(-1)


def _forward_steps(
    steps: range, chunks: Chunks, heads: int, given: tuple[Tensor, ...], factors: Decay, to_fill: tuple[Tensor, ...]
) -> None:
    """Fill the errors and u of the steps, and the states after them, step by step."""
    k, v, beta, inverse = given
    error, u, starts = to_fill
    base = chunks.offset[steps.start] * heads
    part = slice(base, chunks.offset[steps.stop] * heads)
    reading, writing = factors.since(k[part]), factors.to_end(k[part]).mT
    solve = inverse[part] * beta[part][:, None, :]
    for j in steps:
        at, end = chunks.offset[j] * heads, chunks.offset[j + 1] * heads
        torch.baddbmm(v[at:end], reading[at - base : end - base], starts[at:end], alpha=-1, out=error[at:end])
        torch.bmm(solve[at - base : end - base], error[at:end], out=u[at:end])
        if j + 1 < len(chunks.active):
            rows = chunks.active[j + 1] * heads  # of documents that continue
            go_on = slice(at - base, at - base + rows)
            before = factors.over_chunk(starts[at : at + rows], go_on)
            torch.baddbmm(before, writing[go_on], u[at : at + rows], out=starts[end : end + rows])


def _backward_group(
    steps: range,
    chunks: Chunks,
    heads: int,
    saved: list[Any],
    given: list[Any],
    to_fill: list[Any],
    after: Tensor | None,
) -> Tensor:
    """Fill the gradients of q, k, v, beta and log decay of some steps; return that of the states they start with."""
    q, k, beta, decay, inverse, error, u, starts = saved
    do, du_tapped, ds_tapped = given
    factors = Decay(decay)
    do, du, dscores, dpairs = before_steps(do, q, k, u, factors)
    ds = torch.bmm(factors.since(q).mT, do)
    du = du if du_tapped is None else du.add_(du_tapped)
    ds = ds if ds_tapped is None else ds.add_(ds_tapped)
    beta_k = k * beta[..., None]
    r, dends, before = _backward_steps(steps, chunks, heads, (k, beta_k, inverse), factors, du, ds, after)
    of_starts = torch.bmm(do, starts.mT), torch.bmm(r, starts.mT)
    over_chunk = None if decay is None else (factors.over_chunk(starts, slice(None)) * dends).sum((-1, -2))
    of_ends = torch.bmm(u, dends.mT), over_chunk
    after_steps((q, k, beta, error, u), factors, (dscores, dpairs, r, beta_k), of_starts, of_ends, to_fill)
    return before


def before_steps(
    do: Tensor | None, q: Tensor, k: Tensor, u: Tensor, factors: Decay
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """do, scaled as O is; what goes from it to U; the gradients of Q Kᵀ and, with decay, of log D [m, C, C]."""
    do = torch.zeros_like(u) if do is None else do * q.shape[-1] ** -0.5
    scores, dscores = factors.pairs(torch.bmm(q, k.mT)).tril_(), torch.bmm(do, u.mT).tril_()
    dpairs = None if factors.decay is None else dscores * scores
    return do, torch.bmm(scores.mT, do), factors.pairs(dscores), dpairs


def after_steps(
    given: tuple[Tensor, ...],
    factors: Decay,
    found: tuple[Any, ...],
    of_starts: tuple[Tensor, Tensor],
    of_ends: tuple[Tensor, Tensor | None],
    to_fill: Sequence[Any],
) -> None:
    """Fill the gradients of q, k, v, beta and log decay of some chunks, once R is known.

    given: q, k, beta, errors, u. found: the gradients of Q Kᵀ and log D, R, beta K. of_starts: dO Sᵀ and R Sᵀ
    [m, C, K]. of_ends: U dS'ᵀ [m, C, K] and, with decay, the gradient of log e_C [m].
    """
    (q, k, beta, error, u), (dscores, dpairs, r, beta_k) = given, found
    dq, dk, dv, dbeta, ddecay = to_fill
    torch.mul(r, beta[..., None], out=dv)
    from_state = factors.since(of_starts[0])
    dq.copy_(from_state).baddbmm_(dscores, k)
    da = torch.bmm(r, u.mT).tril_(-1).neg_()
    if dpairs is not None:
        dpairs.addcmul_(da, interactions(k, beta, factors))
    da = factors.pairs(da)
    via_a = torch.bmm(da, k)
    dbeta.copy_((r * error).sum(-1)).add_((k * via_a).sum(-1))
    to_end = factors.to_end(of_ends[0])
    dk.copy_(to_end).baddbmm_(dscores.mT, q).baddbmm_(da.mT, beta_k)
    read_back = factors.since(of_starts[1]).mul_(beta[..., None])
    if dpairs is not None and of_ends[1] is not None:
        since = (q * from_state).sum(-1) - (k * read_back).sum(-1)
        ddecay.copy_(factors.gradient(dpairs, since, (k * to_end).sum(-1), of_ends[1]))
    dk.add_(via_a.mul_(beta[..., None])).sub_(read_back)


def _backward_steps(
    steps: range,
    chunks: Chunks,
    heads: int,
    given: tuple[Tensor, ...],
    factors: Decay,
    du: Tensor,
    ds: Tensor,
    after: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """R [m, C, V]; gradient of the state after each chunk [m, K, V]; gradient of the states before the first step.

    du and ds are completed in place, last step first.
    """
    k, beta_k, inverse = given
    base = chunks.offset[steps.start] * heads
    r, dends = torch.empty_like(du), torch.zeros_like(ds)
    writing, reading, solve = factors.to_end(k), factors.since(beta_k).mT, inverse.mT
    if after is not None:
        last = chunks.offset[steps.stop - 1] * heads - base
        dends[last : last + after.shape[0]] = after
    before = torch.empty_like(ds[: chunks.active[steps.start] * heads])
    for j in reversed(steps):
        at, end = chunks.offset[j] * heads - base, chunks.offset[j + 1] * heads - base
        if j + 1 < len(chunks.active):
            go_on = slice(at, at + chunks.active[j + 1] * heads)
            du[go_on].baddbmm_(writing[go_on], dends[go_on])
            ds[go_on].add_(factors.over_chunk(dends[go_on], go_on))
        torch.bmm(solve[at:end], du[at:end], out=r[at:end])
        earlier = chunks.offset[j - 1] * heads - base
        target = before if j == steps.start else dends[earlier : earlier + end - at]
        torch.baddbmm(ds[at:end], reading[at:end], r[at:end], alpha=-1, out=target)
    return r, dends, before


def inverse_unit_lower(a: Tensor, out: Tensor) -> None:
    """a [..., C, C] strictly lower triangular -> out [..., C, C] = (I + a)⁻¹, without gradient."""
    size = a.shape[-1]
    if size == 1:
        out.fill_(1)
        return
    identity = torch.eye(size, dtype=a.dtype, device=a.device)
    out.copy_(torch.linalg.solve_triangular(a, identity.expand(a.shape), upper=False, unitriangular=True))
