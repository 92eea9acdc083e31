"""Attention of new tokens over remembered ones, where rows share prefixes of one text and none is copied.

Shape legend: R rows · N new tokens of all rows, T of a row · L tokens of the pool · S tokens of a prefix in it
· M own tokens of all rows, J of a row: those read since the prefix, then the new ones · A query heads
· h heads of keys and values · g = A / h · K width of a head · D prefixes of a place · n rows that share a prefix
· t tokens of a block.

A row sees pool[from:to], then its own tokens, the T new ones last. All queries of a prefix, of its n rows and of the g
heads that share keys, are one product with a view of the pool; own tokens are a second product. The two are brought
together by their sums of exponentials. Queries come in blocks, and the backward pass computes the scores again: what is
held is as long as the tokens, never tokens × prefix. The pool's gradient is added up in place. `places` says which
rows are worked on at once.
`plain` is the twin: it copies each row's tokens together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine.ops.attention import full
from refine.ops.attention.places import Place, Places, Ranges
from refine.ops.autocast import own_precision
from refine.ops.layout import Layout
from refine.ops.without_graph import run


def plain(
    q: Tensor, own: Sequence[Tensor], pool: Sequence[Tensor], layout: Layout, ranges: Ranges, own_counts: Sequence[int],
    window: int | None = None,
) -> Tensor:  # fmt: skip
    """The twin of `attend`: q [N, A, K], keys and values `own` [M, h, K] and `pool` [L, h, K] -> [N, A, K]."""
    outputs, first = [], 0
    for start, new, count, (a, b) in zip(layout.starts, layout.lengths, own_counts, ranges, strict=True):
        k, v = (torch.cat([p[a:b], o[first : first + count]]) for p, o in zip(pool, own, strict=True))
        outputs.append(full.plain(q[start : start + new], k, v, window))
        first += count
    return torch.cat(outputs)


def attend(
    q: Tensor, own: Sequence[Tensor], pool: Sequence[Tensor], places: Places, window: int | None = None
) -> Tensor:
    """q [N, A, K] over keys and values `own` [M, h, K] and `pool` [L, h, K] -> [N, A, K], in the dtype of q.

    Scores are divided by sqrt(K). With `window`, each token sees itself and the W - 1 before it.
    """
    if places.new_order is None or places.own_order is None:
        return run(_Attention, q, *own, *pool, places.places, window)
    own = [x.index_select(0, places.own_order) for x in own]
    ordered = run(_Attention, q.index_select(0, places.new_order), *own, *pool, places.places, window)
    return ordered.index_select(0, places.back)


class _Attention(torch.autograd.Function):
    @staticmethod
    @own_precision
    def forward(
        ctx: Any, q: Tensor, own_k: Tensor, own_v: Tensor, pool_k: Tensor, pool_v: Tensor, places: list[Place],
        window: int | None,
    ) -> Tensor:  # fmt: skip
        heads, wide = own_k.shape[1], torch.promote_types(q.dtype, torch.float32)
        out, norms = torch.empty_like(q), q.new_empty(*q.shape[:2], 1, dtype=wide)
        for place in places:
            keys, values = _wide_views(place, (own_k, pool_k), wide), _wide_views(place, (own_v, pool_v), wide)
            queries, results, sums = (place.queries(x, heads) for x in (q, out, norms))
            for block in place.blocks(q, heads):
                scores = _scores(place, queries[..., block, :].to(wide), keys, block, window)
                top = torch.cat([x.amax(-1, keepdim=True) for x in scores if x.shape[-1]], -1).amax(-1, keepdim=True)
                weights = [x.sub_(top).exp_() for x in scores]
                total = weights[0].sum(-1, keepdim=True) + weights[1].sum(-1, keepdim=True)
                results[..., block, :] = (_mixed(weights, values) / total).to(q.dtype)
                sums[..., block, :] = top + total.log()
        ctx.save_for_backward(q, own_k, own_v, pool_k, pool_v, out, norms)
        ctx.places, ctx.window = places, window
        return out

    @staticmethod
    @once_differentiable
    @own_precision
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        q, own_k, own_v, pool_k, pool_v, out, norms = saved = ctx.saved_tensors
        heads, wide = own_k.shape[1], norms.dtype
        d_q, *d_own = (torch.empty_like(x, dtype=wide) for x in (q, own_k, own_v))
        d_pool = [torch.zeros_like(x, dtype=wide, memory_format=torch.contiguous_format) for x in (pool_k, pool_v)]
        for place in ctx.places:
            keys, values = _wide_views(place, (own_k, pool_k), wide), _wide_views(place, (own_v, pool_v), wide)
            given, results, sums, d_queries = (place.queries(x, heads) for x in (d_out, out, norms, d_q))
            queries = place.queries(q, heads)
            d_near = [place.near(x).zero_() for x in d_own]
            for block in place.blocks(q, heads):
                rows, back = queries[..., block, :].to(wide), given[..., block, :].to(wide)
                weights = [x.sub_(sums[..., block, :]).exp_() for x in _scores(place, rows, keys, block, ctx.window)]
                along = (back * results[..., block, :].to(wide)).sum(-1, keepdim=True)
                slopes = [
                    x.sub_(along).mul_(w) for x, w in zip(_products(place, back, values, block), weights, strict=True)
                ]
                scale = q.shape[-1] ** -0.5
                d_queries[..., block, :] = _mixed(slopes, keys).mul_(scale)
                for (far, near), x, pool, own in (
                    (slopes, rows * scale, d_pool[0], d_near[0]),
                    (weights, back, d_pool[1], d_near[1]),
                ):
                    place.far(pool).add_((far.flatten(2, 4).mT @ x.flatten(2, 4)).transpose(1, 2))
                    seen = (near.flatten(3, 4).mT @ x.flatten(3, 4)).permute(0, 2, 3, 1, 4)
                    own[:, :, : seen.shape[2]] += seen
        grads = (d_q, *d_own, *d_pool)
        return *(x.to(y.dtype) for x, y in zip(grads, saved, strict=False)), None, None


def _wide_views(place: Place, tensors: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Prefixes [D, h, S, K] and own tokens [D, h, n, J, K]; copies only where `dtype` is another one."""
    own, pool = tensors
    return place.far(pool).transpose(1, 2).to(dtype), place.near(own).permute(0, 3, 1, 2, 4).to(dtype)


def _products(place: Place, x: Tensor, tokens: tuple[Tensor, Tensor], block: slice) -> tuple[Tensor, Tensor]:
    """x [D, h, n, g, t, K] times prefixes -> [D, h, n, g, t, S], and times own tokens up to the block's last."""
    far, near = tokens
    near = near[..., : place.own_tokens - place.new_tokens + block.stop, :]
    shape = x.shape[2:5]
    return (x.flatten(2, 4) @ far.mT).unflatten(2, shape), (x.flatten(3, 4) @ near.mT).unflatten(3, shape[1:])


def _scores(
    place: Place, queries: Tensor, keys: tuple[Tensor, Tensor], block: slice, window: int | None
) -> tuple[Tensor, Tensor]:
    """The scaled products, with -inf where a token cannot see."""
    far, near = _products(place, queries * queries.shape[-1] ** -0.5, keys, block)
    before = place.own_tokens - place.new_tokens
    steps = torch.arange(block.start, block.stop, device=near.device)[:, None] + before
    back = steps - torch.arange(near.shape[-1], device=near.device)
    if back.shape[0] > 1:
        near = near.masked_fill_(back < 0, float("-inf"))
    to_prefix = place.back_to_prefix(near.device)
    if place.lengths is not None:
        far = far.masked_fill_(to_prefix <= 0, float("-inf"))
    if window is not None:
        near = near.masked_fill_(back >= window, float("-inf"))
        far = far.masked_fill_(steps + to_prefix >= window, float("-inf"))
    return far, near


def _mixed(weights: Sequence[Tensor], tokens: tuple[Tensor, Tensor]) -> Tensor:
    """weights of prefixes and own tokens -> the weighted sum of both [D, h, n, g, t, K]."""
    far, near = weights
    shape = far.shape[2:5]
    own = near.flatten(3, 4) @ tokens[1][..., : near.shape[-1], :]
    return (far.flatten(2, 4) @ tokens[0]).unflatten(2, shape) + own.unflatten(3, shape[1:])
