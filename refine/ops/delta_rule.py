"""The delta rule, plain (DeltaNet, arXiv 2406.06484) and gated (Gated DeltaNet, arXiv 2412.06464).

    S_t = a_t S_{t-1} + k_t ⊗ beta_t (v_t − a_t k_tᵀ S_{t-1}),    o_t = q_tᵀ S_t / sqrt(K)        (a_t = 1 if plain)

Shape legend: N tokens of all documents · G documents · X chunks · C tokens of a chunk · R tapped rows
              H heads of q and k · J heads of v · K, V widths of a head. States are [.., K, V], at least float32.

`token_by_token` is the formula. `read` works chunk by chunk: with u_t = beta_t (v_t − a_t k_tᵀ S_{t-1}) and D_ij the
decay from token j to token i of a chunk, the u of a chunk solve one triangular system,
    (I + A) U = beta (V − decayed K S),   A_ij = beta_i D_ij k_iᵀ k_j for j < i,
and all else is matrix products (arXiv 2406.06484, section 3; 2412.06464, section 3.3). The state after r tokens of a
chunk is D_r S + (D_r. K[:r])ᵀ U[:r], so it can be had anywhere for the price of one product: that is a tap.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from refine.ops.chunks import Chunks
from refine.ops.layout import Layout, Taps
from refine.ops.triangular import inverse_unit_lower

CHUNK = 64


def unit_length(x: Tensor) -> Tensor:
    """x [..., K] divided by its L2 norm: x rsqrt(sum x² + 1e-6)."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def token_by_token(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The twin: q, k [B, T, H, K], v [B, T, H, V], beta and log_decay [B, T, H], state [B, H, K, V].

    Returns o [B, T, H, V] and the state after every token [B, T, H, K, V].
    """
    rows, _, heads, width = q.shape
    s = q.new_zeros(rows, heads, width, v.shape[-1]) if state is None else state
    outputs, states = [], []
    for t in range(q.shape[1]):
        if log_decay is not None:
            s = s * log_decay[:, t].exp()[..., None, None]
        error = v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], s)
        s = s + torch.einsum("bhk,bhv->bhkv", k[:, t], beta[:, t, :, None] * error)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], s) / width**0.5)
        states.append(s)
    return torch.stack(outputs, 1), torch.stack(states, 1)


def read(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None, layout: Layout
) -> tuple[Tensor, ChunkStates]:
    """q, k [N, H, K], v [N, J, V], beta and log_decay [N, J], in one floating dtype; state [G, J, K, V] or None (zero).

    J is a multiple of H: value head j uses q and k of head j // (J / H). Returns o [N, J, V] and the states of the read.
    """
    chunks = Chunks.of(layout, CHUNK)
    if v.shape[1] != q.shape[1]:
        q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], 1) for x in (q, k))
    q, k, v, beta = (chunks.cut(x) for x in (q, k, v, beta))
    decay = None if log_decay is None else chunks.cut(log_decay).cumsum(-1)
    if state is not None and chunks.order is not None:
        state = state.index_select(0, chunks.order)
    o, u, starts = _DeltaRule.apply(q, k, v, beta, decay, state, chunks)
    return chunks.join(o), ChunkStates(chunks, k, u, decay, starts)


class ChunkStates:
    """States of a read: at the start of every chunk, and through k and u after any token of it.

    k [X, H, C, K], u [X, H, C, V], decay [X, H, C] (log decay since the chunk's start, or None), starts [X, H, K, V].
    """

    sparse = 2  # under gradient checkpointing the state of every second chunk is kept; a tap re-reads at most these

    def __init__(self, chunks: Chunks, k: Tensor, u: Tensor, decay: Tensor | None, starts: Tensor) -> None:
        self.chunks, self.k, self.u, self.decay, self.starts = chunks, k, u, decay, starts

    def at(self, taps: Taps) -> Tensor:
        """[R, H, K, V]: the state at each tap, with gradient."""
        chunk, read = self.chunks.tapped(taps)
        k, u, state = (x.index_select(0, chunk) for x in (self.k, self.u, self.starts))
        seen = torch.arange(self.chunks.size, device=read.device) < read[:, None]  # [R, C]
        if self.decay is None:
            weight = seen[:, None, :, None].to(k.dtype)
        else:
            decay = self.decay.index_select(0, chunk)  # [R, H, C]
            now = decay.gather(2, (read - 1)[:, None, None].expand(-1, decay.shape[1], 1))  # [R, H, 1]
            weight = (now - decay).masked_fill(~seen[:, None], -torch.inf).exp()[..., None]
            state = state * now[..., None].exp()
        return state + (k * weight).transpose(-1, -2) @ u


class _DeltaRule(torch.autograd.Function):
    """Chunks in, outputs, u and chunk-start states out; the gradient of all three by hand.

    By hand because the loop over chunks would otherwise leave thousands of small graph nodes, and because one
    triangular product R = (I + A)⁻ᵀ dU yields the gradients of beta, k, v and A together.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor | None, state: Tensor | None,
                chunks: Chunks) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        ratio = None if decay is None else _decay_ratio(decay)
        since = None if decay is None else decay.exp()[..., None]
        inverse = inverse_unit_lower(_interactions(k, beta, ratio))
        weighted = inverse * beta[..., None, :]
        w = weighted @ (k if since is None else k * since)
        u = weighted @ v
        k_to_end = k if decay is None else k * (decay[..., -1:] - decay).exp()[..., None]
        starts = _forward_loop(k_to_end, w, u, None if since is None else since[..., -1:, :], state, chunks)
        p = _masked(q @ k.transpose(-1, -2), ratio)
        scale = q.shape[-1] ** -0.5
        o = ((q if since is None else q * since) @ starts + p @ u) * scale
        ctx.save_for_backward(q, k, v, beta, decay, inverse, w, u, starts)
        ctx.chunks, ctx.has_state = chunks, state is not None
        ctx.set_materialize_grads(False)
        return o, u, starts

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, beta, decay, inverse, w, u, starts = ctx.saved_tensors
        do, du_tapped, dstarts_tapped = grads
        ratio = None if decay is None else _decay_ratio(decay)
        since = 1 if decay is None else decay.exp()[..., None]
        to_end = 1 if decay is None else (decay[..., -1:] - decay).exp()[..., None]
        whole = None if decay is None else decay[..., -1, None, None].exp()
        do = (torch.zeros_like(u) if do is None else do) * q.shape[-1] ** -0.5
        # the output
        p = _masked(q @ k.transpose(-1, -2), ratio)
        dp = (do @ u.transpose(-1, -2)).tril_()
        dp_bare = dp if ratio is None else dp * ratio
        do_s = (do @ starts.transpose(-1, -2)) * since
        dq = do_s + dp_bare @ k
        dk = dp_bare.transpose(-1, -2) @ q
        du = p.transpose(-1, -2) @ do
        du = du if du_tapped is None else du.add_(du_tapped)
        dstarts = (q * since).transpose(-1, -2) @ do
        dstarts = dstarts if dstarts_tapped is None else dstarts.add_(dstarts_tapped)
        # the states, last chunk first: du becomes complete, dends is the gradient of the state after each chunk
        dends, dstate = _backward_loop(k * to_end, w, du, dstarts, whole, ctx.chunks)
        dk_end = (u @ dends.transpose(-1, -2)) * to_end
        # the triangular system
        r = inverse.transpose(-1, -2) @ du
        da = (r @ u.transpose(-1, -2)).tril_(-1).neg_()
        read_back = (k @ starts) * since
        interactions = k @ k.transpose(-1, -2) if ratio is None else (k @ k.transpose(-1, -2)) * ratio
        dbeta = (r * (v - read_back)).sum(-1) + (da * interactions).sum(-1)
        x = da * beta[..., None] if ratio is None else da * beta[..., None] * ratio
        r_s = (r @ starts.transpose(-1, -2)) * (since * beta[..., None])
        dk = dk + dk_end - r_s + (x + x.transpose(-1, -2)) @ k
        dv = beta[..., None] * r
        ddecay = None
        if decay is not None:
            pairs = dp * p + da * interactions * beta[..., None]
            end = (dk_end * k).sum(-1)
            ddecay = (q * do_s).sum(-1) - (k * r_s).sum(-1) + pairs.sum(-1) - pairs.sum(-2) - end
            ddecay[..., -1] += end.sum(-1) + (whole * starts * dends).sum((-1, -2))
        return dq, dk, dv, dbeta, ddecay, dstate if ctx.has_state else None, None


def _decay_ratio(decay: Tensor) -> Tensor:
    """[.., C] log decay since the chunk's start -> [.., C, C]: decay from token j to token i (j <= i; 1 elsewhere)."""
    return (decay[..., :, None] - decay[..., None, :]).clamp_(max=0).exp_()


def _masked(scores: Tensor, ratio: Tensor | None) -> Tensor:
    return (scores if ratio is None else scores.mul_(ratio)).tril_()


def _interactions(k: Tensor, beta: Tensor, ratio: Tensor | None) -> Tensor:
    a = (k @ k.transpose(-1, -2)).mul_(beta[..., None])
    return (a if ratio is None else a.mul_(ratio)).tril_(-1)


def _flat(x: Tensor) -> Tensor:
    return x.view(-1, *x.shape[2:])


def _forward_loop(
    k: Tensor, w: Tensor, u: Tensor, whole: Tensor | None, state: Tensor | None, chunks: Chunks
) -> Tensor:
    """State at the start of every chunk [X, H, K, V]; u [X, H, C, V] loses w S in place. k is decayed to its chunk's end."""
    heads = k.shape[1]
    starts = k.new_zeros(k.shape[0], heads, k.shape[3], u.shape[3])
    if state is not None:
        starts[: chunks.active[0]] = state
    k, w, u, s = _flat(k).transpose(-1, -2), _flat(w), _flat(u), _flat(starts)
    for j, active in enumerate(chunks.active):
        here = slice(chunks.offset[j] * heads, (chunks.offset[j] + active) * heads)
        if j or state is not None:
            u[here].baddbmm_(w[here], s[here], alpha=-1)
        if j + 1 < len(chunks.active):
            ahead = chunks.active[j + 1] * heads  # documents that go on
            now, after = slice(here.start, here.start + ahead), slice(here.stop, here.stop + ahead)
            before = s[now] if whole is None else s[now] * _flat(whole)[now]
            torch.baddbmm(before, k[now], u[now], out=s[after])
    return starts


def _backward_loop(
    k: Tensor, w: Tensor, du: Tensor, dstarts: Tensor, whole: Tensor | None, chunks: Chunks
) -> tuple[Tensor, Tensor]:
    """dends [X, H, K, V]: gradient of the state after each chunk; du is completed in place; gradient of the first state [G, ...]."""
    heads = k.shape[1]
    dends = torch.zeros_like(dstarts)
    k, w, du = _flat(k), _flat(w).transpose(-1, -2), _flat(du)
    ds, de = _flat(dstarts), _flat(dends)
    for j in reversed(range(len(chunks.active))):
        here = slice(chunks.offset[j] * heads, chunks.offset[j + 1] * heads)
        if j + 1 < len(chunks.active):
            ahead = slice(here.start, here.start + chunks.active[j + 1] * heads)
            du[ahead].baddbmm_(k[ahead], de[ahead])
            ds[ahead].add_(de[ahead] if whole is None else de[ahead] * _flat(whole)[ahead])
        before = slice(chunks.offset[j - 1] * heads, chunks.offset[j - 1] * heads + here.stop - here.start)
        target = de[before] if j else ds[here]
        torch.baddbmm(ds[here], w[here], du[here], alpha=-1, out=target)
    return dends, dstarts[: chunks.active[0]]  # in the order of the chunks, as the first state was given
