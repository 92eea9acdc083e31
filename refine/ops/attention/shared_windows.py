"""Attention of a few new tokens over windows of a longer text, without copying the windows.

Shape legend: R rows · T new tokens of a row · j own tokens read before (after the window) · L tokens of the pool
· D distinct windows · n rows that share one · H heads · K width of a head · S tokens of the longest window · W window.

Rollouts from many taps of one read see windows of one text, the pool. Rows that share a window are laid side by side;
products read each window in the pool, and add its gradient there: one window after the other, or one product for many
(`refine.ops.attention.stretches`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from refine.ops.autocast import own_precision
from refine.ops.layout import on_device
from refine.ops.row_groups import Groups
from refine.ops.without_graph import run

Ranges = tuple[tuple[int, int], ...]


class Windows:
    """The windows (from, to) of R rows in a pool of tokens: products with them in place, laid out as [D, ..., S].

    Windows are aligned at their last token. `wide`: the weights hold so many masked places that a backward pass makes
    them again, where else they are kept.
    """

    wide = False

    def __init__(self, ranges: Sequence[tuple[int, int]], device: torch.device | str = "cpu") -> None:
        self.groups = Groups(ranges, device)
        self.ranges: Ranges = tuple(self.groups.distinct)
        lengths = [to - start for start, to in self.ranges]
        self.longest = max(lengths)
        self.device = torch.device(device)
        ends = [to for _, to in self.ranges]
        self._step = ends[1] - ends[0] if len(ends) > 1 else ends[0]
        # windows at equal distances (as in a batch that is decoded) are one strided view
        even = all(b - a == self._step for a, b in itertools.pairwise(ends))
        self.even = even and 0 < self.longest <= min(self._step, ends[0])
        self._first = ends[0] - self.longest
        self._unseen: dict[tuple[int, int, int], Tensor] = {}

    @cached_property
    def length(self) -> Tensor:
        """[D]: how many of the S places hold a token."""
        return self._counts()[0]

    def _counts(self, *more: int) -> tuple[Tensor, Tensor]:
        """The windows' lengths [D], and `more` int64, in one transfer to the device."""
        lengths = [to - start for start, to in self.ranges]
        least = min(lengths)  # relative to it they are the same at each token of a rollout, while the windows move
        both = on_device([*(n - least for n in lengths), *more], self.device)
        return both[: len(lengths)] + least, both[len(lengths) :]

    def _strided(self, pool: Tensor) -> Tensor:
        """[D, H, S, K], a view."""
        token, head, width = pool.stride()
        size = (len(self.ranges), pool.shape[1], self.longest, pool.shape[2])
        return pool.as_strided(
            size, (self._step * token, head, token, width), pool.storage_offset() + self._first * token
        )

    def laid(self, x: Tensor) -> Tensor:
        """x [D, n, T, H, K] -> [D, H, n, T, K], the order in which all products are laid out."""
        return x.permute(0, 3, 1, 2, 4)

    def back(self, x: Tensor) -> Tensor:
        """The inverse of `laid`."""
        return x.permute(0, 2, 3, 1, 4)

    def unseen(self, tokens: int, own: int, window: int) -> Tensor:
        """[D, 1, 1, T, S + j + T] bool: what each of T new tokens does not see of the window's places and of the row's
        own tokens, the new ones last. Made once for all layers."""
        key = (tokens, own, window)
        if key not in self._unseen:
            steps = torch.arange(own - tokens, own, device=self.device)[:, None]
            far = self._unseen_places(steps, window)
            back = steps - torch.arange(own, device=self.device)
            near = ((back < 0) | (back >= window)).expand(far.shape[0], -1, -1)
            self._unseen[key] = torch.cat([far, near], dim=-1)[:, None, None]
        return self._unseen[key]

    def _unseen_places(self, steps: Tensor, window: int) -> Tensor:
        """[D, T, S], for tokens with steps [T, 1] own tokens before them."""
        ago = torch.arange(self.longest - 1, -1, -1, device=steps.device)  # 0 for the window's last token
        return (ago >= self.length[:, None, None]) | (ago > window - 2 - steps)

    def times_tokens(self, x: Tensor, pool: Tensor) -> Tensor:
        """x [D, H, r, K], pool [L, H, K] -> products with each token of the row's window, [D, H, r, S]."""
        if self.even:
            return x @ self._strided(pool).mT
        out = x.new_zeros(*x.shape[:3], self.longest)
        for d, (start, to) in enumerate(self.ranges):
            out[d, :, :, self.longest - (to - start) :] = x[d] @ pool[start:to].permute(1, 2, 0)
        return out

    def mix(self, weights: Tensor, pool: Tensor) -> Tensor:
        """weights [D, H, r, S] -> weighted sums of the windows' tokens, [D, H, r, K]."""
        if self.even:
            return weights @ self._strided(pool)
        parts = []
        for d, (start, to) in enumerate(self.ranges):
            parts.append(weights[d, :, :, self.longest - (to - start) :] @ pool[start:to].transpose(0, 1))
        return torch.stack(parts)

    def add(self, into: Tensor, weights: Tensor, x: Tensor) -> None:
        """Add weightsᵀ x to each window, in place: weights [D, H, r, S], x [D, H, r, K], into [L, H, K]."""
        if self.even:
            self._strided(into).add_(weights.mT @ x)
            return
        for d, (start, to) in enumerate(self.ranges):
            into[start:to] += (weights[d, :, :, self.longest - (to - start) :].mT @ x[d]).transpose(0, 1)


def attend(
    q: Tensor, own_k: Tensor, own_v: Tensor, pool_k: Tensor, pool_v: Tensor, windows: Windows, window: int
) -> Tensor:
    """q [R, T, H, K] over each row's window in the pool [L, H, K] and its own tokens [R, j + T, H, K] -> [R, T, H, K].

    Each token sees itself and the W - 1 before it.
    """
    grouped = [windows.groups.gather(x) for x in (q, own_k, own_v)]
    return windows.groups.scatter(run(_Attention, *grouped, pool_k, pool_v, windows, window))


class _Attention(torch.autograd.Function):
    """Softmax attention over pool and own tokens together, with the pool's gradient summed in place."""

    @staticmethod
    @own_precision
    def forward(
        ctx: Any, q: Tensor, own_k: Tensor, own_v: Tensor, pool_k: Tensor, pool_v: Tensor, windows: Windows, window: int
    ) -> Tensor:
        size, tokens = q.shape[1:3]
        queries = windows.laid(q) * q.shape[-1] ** -0.5
        weights = _weights(queries, own_k, pool_k, windows, window)
        far, near = weights.split([windows.longest, own_k.shape[2]], dim=-1)
        out = windows.mix(far.flatten(2, 3), pool_v).unflatten(2, (size, tokens)) + near @ windows.laid(own_v)
        ctx.save_for_backward(queries, own_k, own_v, pool_k, pool_v, None if windows.wide else weights)
        ctx.windows, ctx.window = windows, window
        return windows.back(out)

    @staticmethod
    @own_precision
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        queries, own_k, own_v, pool_k, pool_v, weights = ctx.saved_tensors
        windows: Windows = ctx.windows
        if weights is None:
            weights = _weights(queries, own_k, pool_k, windows, ctx.window)
        shape = queries.shape[2:4]
        out = windows.laid(grads[0])  # [D, H, n, T, K]
        keys, values = windows.laid(own_k), windows.laid(own_v)
        split = [weights.shape[-1] - keys.shape[-2], keys.shape[-2]]
        far = windows.times_tokens(out.flatten(2, 3), pool_v).unflatten(2, shape)
        slope = torch.cat([far, out @ values.mT], dim=-1)
        slope = weights * (slope - (slope * weights).sum(-1, keepdim=True))
        far, near = slope.split(split, dim=-1)
        far_weights, near_weights = weights.split(split, dim=-1)
        d_q = windows.mix(far.flatten(2, 3), pool_k).unflatten(2, shape) + near @ keys
        d_k, d_v = torch.zeros_like(pool_k), torch.zeros_like(pool_v)
        windows.add(d_k, far.flatten(2, 3), queries.flatten(2, 3))
        windows.add(d_v, far_weights.flatten(2, 3), out.flatten(2, 3))
        back = (d_q * queries.shape[-1] ** -0.5, near.mT @ queries, near_weights.mT @ out)
        return (*(windows.back(x) for x in back), d_k, d_v, None, None)


def _weights(queries: Tensor, own_k: Tensor, pool_k: Tensor, windows: Windows, window: int) -> Tensor:
    """The softmax of queries [D, H, n, T, K] over the window's places and the row's own tokens, [D, H, n, T, S + J]."""
    tokens = queries.shape[3]
    far = windows.times_tokens(queries.flatten(2, 3), pool_k).unflatten(2, queries.shape[2:4])
    near = queries @ windows.laid(own_k).mT
    return _softmax(far, near, windows.unseen(tokens, own_k.shape[2], window))


def _softmax(far: Tensor, near: Tensor, unseen: Tensor) -> Tensor:
    """Weights over window and own tokens together: far [D, H, n, T, S], near [D, H, n, T, j + T], in near's dtype."""
    scores = torch.cat([far, near], dim=-1).masked_fill_(unseen, float("-inf"))
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(near.dtype)
