"""The delta rule on chunks, forward and backward by hand.

Shape legend: G documents · H heads · M chunks times heads (m of one group of steps) · C tokens of a chunk
              K, V key and value width of a head.

By hand because autograd would make thousands of small graph nodes of the loop over chunks, and because one triangular
product R = (I + A)⁻ᵀ dU gives the gradients of beta, k, v and A together. Both passes process the chunks in groups of
steps that fit a core's cache; only what the backward pass needs is as long as the text.

Notation, for one chunk (see refine.ops.delta_rule.rule): S state at its start, D_ij decay from token j to token i,
e_i decay since the chunk's start, f_i decay from token i to the chunk's end (all 1 without decay);
E = V − e K S the errors, U = (I + A)⁻¹ beta E, P = tril(D ∘ Q Kᵀ), O = (e Q S + P U) / sqrt(K), S' = e_C S + (f K)ᵀ U.
With a decay for each channel, D, e and f are one factor a channel, and stand inside the products over channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from refine.ops.autocast import own_precision
from refine.ops.delta_rule.channel_decay import Factors, factors_of
from refine.ops.delta_rule.chunks import Chunks


class ChunkedDeltaRule(torch.autograd.Function):
    """q, k [M, C, K], v [M, C, V], beta [M, C], log decay [M, C] or [M, C, K] (or None), state [G H, K, V] in
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
            factors = factors_of(None if decay is None else decay[part])
            interactions, scores = factors.products(q[part], k[part], beta[part])
            inverse_unit_lower(interactions, out=inverse[part])
            _forward_steps(steps, chunks, heads, (k, v, beta, inverse), factors, (error, u, starts))
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


def _forward_steps(
    steps: range, chunks: Chunks, heads: int, given: tuple[Tensor, ...], factors: Factors, to_fill: tuple[Tensor, ...]
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
    factors = factors_of(decay)
    do, du, slopes = before_steps(do, q, k, u, factors)
    ds = torch.bmm(factors.since(q).mT, do)
    du = du if du_tapped is None else du.add_(du_tapped)
    ds = ds if ds_tapped is None else ds.add_(ds_tapped)
    beta_k = k * beta[..., None]
    r, dends, before = _backward_steps(steps, chunks, heads, (k, beta_k, inverse), factors, du, ds, after)
    of_starts = torch.bmm(do, starts.mT), torch.bmm(r, starts.mT)
    of_ends = torch.bmm(u, dends.mT), factors.of_over_chunk(starts, dends)
    after_steps((q, k, beta, error, u), factors, (slopes, r, beta_k), of_starts, of_ends, to_fill)
    return before


def before_steps(
    do: Tensor | None, q: Tensor, k: Tensor, u: Tensor, factors: Factors
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor | None]]:
    """do, scaled as O is; what goes from it to U; what the gradients through P need (`Factors.slopes`)."""
    do = torch.zeros_like(u) if do is None else do * q.shape[-1] ** -0.5
    scores, dscores = factors.scores(q, k), torch.bmm(do, u.mT).tril_()
    slopes = factors.slopes(dscores, scores)
    return do, torch.bmm(scores.mT, do), slopes


def after_steps(
    given: tuple[Tensor, ...],
    factors: Factors,
    found: tuple[Any, ...],
    of_starts: tuple[Tensor, Tensor],
    of_ends: tuple[Tensor, Tensor | None],
    to_fill: Sequence[Any],
) -> None:
    """Fill the gradients of q, k, v, beta and log decay of some chunks, once R is known.

    given: q, k, beta, errors, u. found: the slopes of P, R, beta K. of_starts: dO Sᵀ and R Sᵀ [m, C, K].
    of_ends: U dS'ᵀ [m, C, K] and the gradient of log e_C (None: no decay, or no chunk follows).
    """
    (q, k, beta, error, u), (slopes, r, beta_k) = given, found
    dq, dk, dv, dbeta, ddecay = to_fill
    torch.mul(r, beta[..., None], out=dv)
    from_state, to_end = factors.since(of_starts[0]), factors.to_end(of_ends[0])
    dq.copy_(from_state)
    dk.copy_(to_end)
    da = torch.bmm(r, u.mT).tril_(-1).neg_()
    via_a, pairs = factors.add_pair_gradients((q, k, beta, beta_k), slopes, da, dq, dk)
    dbeta.copy_((r * error).sum(-1)).add_((k * via_a).sum(-1))
    read_back = factors.since(of_starts[1]).mul_(beta[..., None])
    if ddecay is not None:
        ddecay.copy_(factors.gradient(pairs, (q * from_state, k * read_back), k * to_end, of_ends[1]))
    dk.add_(via_a.mul_(beta[..., None])).sub_(read_back)


def _backward_steps(
    steps: range,
    chunks: Chunks,
    heads: int,
    given: tuple[Tensor, ...],
    factors: Factors,
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
