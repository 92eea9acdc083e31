"""The delta rule: plain (DeltaNet, arXiv 2406.06484), gated (Gated DeltaNet, arXiv 2412.06464), and gated for each key
channel (Kimi Delta Attention, arXiv 2510.26692).

    S_t = a_t S_{t-1} + k_t ⊗ beta_t (v_t − k_tᵀ a_t S_{t-1}),    o_t = q_tᵀ S_t / sqrt(K)

a_t = 1 if plain; a number for each head if gated; a number for each row of S_{t-1} if gated for each channel.

Shape legend: N tokens of all documents · G documents · X chunks · C tokens of a chunk · R tapped rows
              H heads of q and k · J heads of v · K, V widths of a head. States are [.., K, V], at least float32.

`token_by_token` is the formula. `read` works chunk by chunk: with u_t = beta_t (v_t − k_tᵀ a_t S_{t-1}) and D_ij the
decay from token j to token i of a chunk, the u of a chunk solve one triangular system,
    (I + A) U = beta (V − decayed K S),   A_ij = beta_i D_ij k_iᵀ k_j for j < i,
and all else is matrix products (arXiv 2406.06484, section 3; 2412.06464, section 3.3). The state after r tokens of a
chunk is D_r S + (D_r. K[:r])ᵀ U[:r], so a tap at any token costs one product. `channel_decay` says what becomes of D_ij
where every channel has its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refine.ops.autocast import product
from refine.ops.delta_rule.chunked import ChunkedDeltaRule
from refine.ops.delta_rule.chunks import Chunks
from refine.ops.delta_rule.shared_start import SharedStartDeltaRule, SharedStarts
from refine.ops.layout import Ends, Layout, Taps
from refine.ops.tapped_rows import LaterRows
from refine.ops.without_graph import run

CHUNK = 64


def token_by_token(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The twin: q, k [B, T, H, K], v [B, T, H, V], beta [B, T, H], log_decay [B, T, H] or [B, T, H, K] (or None),
    state [B, H, K, V].

    Returns o [B, T, H, V] and the state after every token [B, T, H, K, V].
    """
    rows, _, heads, width = q.shape
    s = q.new_zeros(rows, heads, width, v.shape[-1]) if state is None else state
    outputs, states = [], []
    # unbound, because the gradient of indexing one token would be as long as the text
    decays = [None] * q.shape[1] if log_decay is None else log_decay.unbind(1)
    for q_t, k_t, v_t, beta_t, decay_t in zip(*(x.unbind(1) for x in (q, k, v, beta)), decays, strict=True):
        if decay_t is not None:
            s = _decayed(s, decay_t)
        error = v_t - torch.einsum("bhk,bhkv->bhv", k_t, s)
        s = s + torch.einsum("bhk,bhv->bhkv", k_t, beta_t[..., None] * error)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q_t, s) / width**0.5)
        states.append(s)
    return torch.stack(outputs, 1), torch.stack(states, 1)


def read(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    state: Tensor | None,
    layout: Layout,
    sharing: int = 1,
    size: int = CHUNK,
) -> tuple[Tensor, ChunkStates | Ends]:
    """q, k [N, H, K], v [N, J, V], beta [N, J], log_decay [N, J] or [N, J, K] or None, in one floating dtype;
    state [G, J, K, V] or None (zero).

    J is a multiple of H: value head j uses q and k of head j // (J / H). `sharing`: so many documents in a row start
    from each state, of which there are G / sharing. `size`: tokens of a chunk.
    Returns o [N, J, V] and the read's states.
    """
    if v.shape[1] != q.shape[1]:
        q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], 1) for x in (q, k))
    if state is not None and layout.decodes:
        return _one_token(q, k, v, beta, log_decay, laid_out(state, sharing))
    chunks = Chunks.of(layout, size)
    q, k, v, beta = (chunks.cut(x) for x in (q, k, v, beta))
    decay = None if log_decay is None else chunks.cut(log_decay)
    decay_rows: Tensor | LaterRows | None = decay
    if decay is not None and decay.ndim == k.ndim:  # as long as the keys
        decay_rows = LaterRows(decay)
        decay = decay_rows.tensor
    heads, k_rows = k.shape[1], LaterRows(k)
    if state is not None and sharing > 1:
        if len(chunks.active) == 1 and chunks.order is None:
            flat = [None if x is None else x.flatten(0, 1) for x in (q, k_rows.tensor, v, beta, decay, state)]
            o, u = (x.unflatten(0, (-1, heads)) for x in run(SharedStartDeltaRule, *flat, sharing, heads))
            return chunks.join(o), ChunkStates(chunks, k_rows, LaterRows(u), decay_rows, SharedStarts(state, sharing))
        state = laid_out(state, sharing)
    if state is not None and chunks.order is not None:
        state = state.index_select(0, chunks.order)
    flat = [None if x is None else x.flatten(0, 1) for x in (q, k_rows.tensor, v, beta, decay, state)]
    o, u, starts = (x.unflatten(0, (-1, heads)) for x in run(ChunkedDeltaRule, *flat, chunks, heads))
    return chunks.join(o), ChunkStates(chunks, k_rows, LaterRows(u), decay_rows, LaterRows(starts))


def _one_token(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor
) -> tuple[Tensor, Ends]:
    """`read` of one token after each document's state, in few operations."""
    if log_decay is not None:
        state = _decayed(state, log_decay)
    error = v - (k[..., None, :] @ state)[..., 0, :]
    state = torch.addcmul(state, k[..., None], error.mul_(beta[..., None])[..., None, :])
    return (q[..., None, :] @ state)[..., 0, :].mul_(q.shape[-1] ** -0.5), Ends(state)


def _decayed(state: Tensor, log_decay: Tensor) -> Tensor:
    """state [B, H, K, V] after a token with log_decay [B, H] or [B, H, K]."""
    factors = log_decay.exp()[..., None]
    return state * (factors if log_decay.ndim == 3 else factors[..., None])


def laid_out(state: Tensor, sharing: int) -> Tensor:
    """state [D, ...] -> [D * sharing, ...], each row `sharing` times in a row."""
    return state if sharing == 1 else state.repeat_interleave(sharing, 0)


class ChunkStates:
    """The states of a read: at the start of every chunk and, from k and u, after any of its tokens.

    k [X, H, C, K], u [X, H, C, V], log decay [X, H, C] or [X, H, C, K] (or None), starts [X, H, K, V].
    """

    sparse = 2  # under gradient checkpointing every second chunk's state is kept; a tap reads at most two again

    def __init__(
        self,
        chunks: Chunks,
        k: LaterRows,
        u: LaterRows,
        decay: Tensor | LaterRows | None,
        starts: LaterRows | SharedStarts,
    ) -> None:
        self.chunks, self.k, self.u, self.decay, self.starts = chunks, k, u, decay, starts

    def at(self, taps: Taps) -> Tensor:
        """[R, H, K, V]: the state at each tap, with gradient."""
        decay = self.decay.tensor if isinstance(self.decay, LaterRows) else self.decay
        if self.chunks.ends_all(taps):
            return _after(self.k.tensor, self.u.tensor, decay, self.starts.tensor)
        chunk, read = self.chunks.tapped(taps)
        k, u, states = (x.pick(chunk) for x in (self.k, self.u, self.starts))
        seen = (torch.arange(self.chunks.size, device=read.device) < read[:, None])[:, None]  # [R, 1, C]
        if isinstance(self.decay, LaterRows):
            decay = self.decay.pick(chunk) * seen[..., None]
        elif decay is not None:
            decay = decay.index_select(0, chunk) * seen
        return _after(k * seen[..., None], u, decay, states)


def _after(k: Tensor, u: Tensor, decay: Tensor | None, states: Tensor) -> Tensor:
    """[R, H, K, V]: the states after R chunks that start from `states`; k and decay are 0 where there is no token."""
    if decay is not None:
        decay = decay if decay.ndim == k.ndim else decay[..., None]  # [R, H, C, K] or [R, H, C, 1]
        since = decay.flip(-2).cumsum(-2).flip(-2)  # of each token and those after it
        after = torch.nn.functional.pad(since[..., 1:, :], (0, 0, 0, 1))
        k, states = k * after.exp(), states * since[..., 0, :, None].exp()
    return states + product(k.mT, u)
