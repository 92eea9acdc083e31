"""Causal attention over a sliding window, for documents of any length that continue remembered tokens.

Shape legend: N new tokens of all G documents · M remembered and new tokens, document after document · H heads
· K width of a head · W window · b queries of a block · m blocks that a window reaches back.

Each token sees itself and the W-1 before it. Three ways:
`blocks`  scaled_dot_product_attention of b queries against the (m+1)·b keys that they can see: never T × T scores;
`flex`    torch's flex_attention, compiled (CUDA with triton);
`plain`   the twin: every score, masked.
`REFINE_WINDOW_ATTENTION` chooses: "auto" (default: flex if it can run, else blocks), or one of the three. The choice is
logged once.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from refine.errors import SettingError
from refine.ops.layout import Layout
from refine.ops.without_graph import run

METHODS = ("blocks", "flex", "plain")
GRAPHS = 64  # graphs that torch may compile of one function: windows, dtypes and lengths come in more kinds than its 8
_log = logging.getLogger(__name__)


def attend(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, before: Sequence[int], window: int, method: str | None = None
) -> Tensor:
    """Attention of q [N, H, K], documents as in `layout`, over k, v [M, H, K] -> [N, H, K].

    Document g has before[g] remembered tokens in front of its new ones. Scores are divided by sqrt(K).
    """
    method = method or chosen(q.device, q.dtype, q.shape[-1])
    if method == "plain":
        return _plain(q, k, v, layout, before, window)
    if layout.width is not None and len(set(before)) == 1:
        squares = [x.unflatten(0, (layout.documents, -1)) for x in (q, k, v)]
        return _CHOSEN[method](*squares, layout, None, window).flatten(0, 1)
    key = tuple(before)
    document, place = layout.once(("remembered and new", key), lambda: _remembered_and_new(layout, before))
    if k.shape[0] > q.shape[0]:
        q = q.new_zeros(k.shape).index_copy(0, place, q)
    out = _CHOSEN[method](q[None], k[None], v[None], layout, document, window)[0]
    return out.index_select(0, place) if out.shape[0] > layout.tokens else out


def chosen(device: torch.device, dtype: torch.dtype, width: int) -> str:
    """The method for tensors on `device` with heads of `width`. Raises SettingError if the wanted one cannot run."""
    return _choice(os.environ.get("REFINE_WINDOW_ATTENTION", "auto"), device.type, dtype, width)


@functools.cache
def _choice(wish: str, device: str, dtype: torch.dtype, width: int) -> str:
    if wish not in ("auto", *METHODS):
        raise SettingError(f"REFINE_WINDOW_ATTENTION is {wish!r}: expected auto, {', '.join(METHODS)}")
    reason = None
    if device != "cuda":
        reason = f"the model is on {device}, not on a CUDA device"
    elif importlib.util.find_spec("triton") is None:
        reason = "triton cannot be imported"
    elif dtype == torch.float64 or width < 16:
        reason = f"its kernel reads neither float64 nor heads below 16, and this model has {dtype} and heads of {width}"
    if wish == "flex" and reason:
        raise SettingError(f"REFINE_WINDOW_ATTENTION is 'flex', but {reason}: use auto or blocks")
    method = wish if wish != "auto" else "blocks" if reason else "flex"
    _log.info("window attention on %s in %s: %s", device, dtype, method)
    return method


def _remembered_and_new(layout: Layout, before: Sequence[int]) -> tuple[Tensor, Tensor]:
    """document [M]: the document of every remembered and new token; place [N]: the indices of the new ones."""
    new = torch.arange(layout.tokens, device=layout.device)
    if not any(before):
        return layout.document_of_token(), new
    counts = [p + n for p, n in zip(before, layout.lengths, strict=True)]
    counts_there, shift = layout.tensor([*counts, *accumulate(before)]).view(2, -1)
    documents = torch.arange(layout.documents, device=layout.device)
    document = torch.repeat_interleave(documents, counts_there, output_size=sum(counts))
    return document, shift[layout.document_of_token()] + new


def _plain(q: Tensor, k: Tensor, v: Tensor, layout: Layout, before: Sequence[int], window: int) -> Tensor:
    outputs, first = [], 0
    for start, n, p in zip(layout.starts, layout.lengths, before, strict=True):
        keys, values = k[first : first + p + n], v[first : first + p + n]
        back = torch.arange(p, p + n)[:, None] - torch.arange(p + n)[None, :]
        hidden = ((back < 0) | (back >= window)).to(q.device)
        scores = torch.einsum("qhk,shk->hqs", q[start : start + n], keys) / q.shape[-1] ** 0.5
        outputs.append(torch.einsum("hqs,shk->qhk", scores.masked_fill(hidden, float("-inf")).softmax(-1), values))
        first += p + n
    return torch.cat(outputs)


def block_size(window: int) -> int:
    """b: a quarter of the window, so that four fifths of the scores are used; 32 .. 128, which suits a CPU."""
    return min(128, max(32, window // 4))


def _blocks(q: Tensor, k: Tensor, v: Tensor, layout: Layout, document: Tensor | None, window: int) -> Tensor:
    """q [G, T, H, K] against k, v [G, P + T, H, K]; with `document` [T] (then G = 1, P = 0) only within a document."""
    size = block_size(window)
    reach = -(-(window - 1) // size) * size
    tokens, remembered = q.shape[1], k.shape[1] - q.shape[1]
    head = min(tokens, reach) if tokens - reach > size else tokens
    key = ("window mask", window, tokens, remembered, document is not None)
    mask, masks = layout.once(key, lambda: _block_masks(q.device, document, window, head, tokens, remembered))
    plain = document is None and remembered == 0 and head <= window  # then causal attention needs no mask
    first = _sdpa(q[:, :head], k[:, : remembered + head], v[:, : remembered + head], None if plain else mask)
    if head == tokens:
        return first
    count = -(-(tokens - head) // size)
    filled = head + count * size - tokens
    queries = _filled_up(q[:, head:], filled).unflatten(1, (count, size)).flatten(0, 1)
    keys, values = (
        run(_Overlapping, _filled_up(x[:, remembered + head - reach :], filled), size, reach // size + 1).flatten(0, 1)
        for x in (k, v)
    )
    rest = _sdpa(queries, keys, values, masks)
    return torch.cat([first, rest.unflatten(0, (-1, count)).flatten(1, 2)[:, : tokens - head]], dim=1)


def _filled_up(x: Tensor, more: int) -> Tensor:
    """x [G, T, H, K] followed by `more` tokens of zeros."""
    return pad(x, (0, 0, 0, 0, 0, more)) if more else x


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """q [., b, H, K] against k, v [., s, H, K]: the pairs in `mask`; without it, each token and those before it."""
    if mask is not None and mask.dim() == 4 and mask.shape[0] not in (1, q.shape[0]):
        mask = mask.repeat(q.shape[0] // mask.shape[0], 1, 1, 1)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None).transpose(1, 2)


def _block_masks(
    device: torch.device, document: Tensor | None, window: int, head: int, tokens: int, remembered: int
) -> tuple[Tensor, Tensor]:
    """What the first `head` queries see, [head, P + head], and each block after them, [(blocks, 1,) b, (m+1)·b]."""
    size = block_size(window)
    reach = -(-(window - 1) // size) * size

    def seen(queries: Tensor, keys: Tensor) -> Tensor:
        back = queries.unsqueeze(-1) - keys.unsqueeze(-2)
        return (back >= 0) & (back < window)

    first, keys = torch.arange(head, device=device) + remembered, torch.arange(remembered + head, device=device)
    mask = seen(first, keys)
    masks = seen(torch.arange(size, device=device) + reach, torch.arange(reach + size, device=device))
    if document is not None:
        mask = mask & (document[:head, None] == document[None, :head])
        starts = torch.arange(head, tokens, size, device=device)[:, None]
        own = pad(document, (0, size), value=-1)  # padding is a document, whose tokens see each other
        queries, keys = (
            starts + torch.arange(size, device=device),
            starts - reach + torch.arange(reach + size, device=device),
        )
        masks = (masks & (own[queries].unsqueeze(-1) == own[keys].unsqueeze(-2))).unsqueeze(1)
    return mask, masks


class _Overlapping(torch.autograd.Function):
    """x [G, (n + m) b, H, K] -> [G, n, (m + 1) b, H, K]: block i and the m before it, a view with each token
    up to m + 1 times; its gradient is summed in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, span: int) -> Tensor:
        ctx.shape, ctx.size = x.shape, size
        return x.unfold(1, span * size, size).movedim(-1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        total = grads[0].new_zeros(ctx.shape)
        blocks, count = total.unflatten(1, (-1, ctx.size)), grads[0].shape[1]
        for i, part in enumerate(grads[0].split(ctx.size, dim=2)):
            blocks[:, i : i + count] += part
        return total, None, None


def _flex(q: Tensor, k: Tensor, v: Tensor, layout: Layout, document: Tensor | None, window: int) -> Tensor:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    remembered = k.shape[1] - q.shape[1]

    def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        back = query + remembered - key
        near = (back >= 0) & (back < window)
        return near if document is None else near & (document[query] == document[key])

    def build() -> Any:
        # uncompiled the mask is T × T for a moment
        create: Any = _compiled(create_block_mask) if q.device.type == "cuda" else create_block_mask
        return create(seen, None, None, q.shape[1], k.shape[1], device=q.device)

    mask = layout.once(("flex mask", window, q.shape[1], remembered, document is not None), build)
    kernel: Any = _compiled(flex_attention) if q.device.type == "cuda" else flex_attention
    return kernel(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=mask).transpose(1, 2)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled, at most GRAPHS times: then it raises SettingError, where torch would go on uncompiled, with
    T × T scores."""
    from torch._dynamo import config
    from torch._dynamo.exc import FailOnRecompileLimitHit

    compiled = torch.compile(function, dynamic=True)

    def or_refuse(*args: Any, **kwargs: Any) -> Any:
        with config.patch(recompile_limit=GRAPHS, fail_on_recompile_limit_hit=True):
            try:
                return compiled(*args, **kwargs)
            except FailOnRecompileLimitHit:
                raise SettingError(
                    f"window attention was compiled {GRAPHS} times, for different lengths and kinds of tensors, and "
                    "torch would go on uncompiled: set REFINE_WINDOW_ATTENTION=blocks"
                ) from None

    return or_refuse


_CHOSEN: dict[str, Callable[..., Tensor]] = {"blocks": _blocks, "flex": _flex}
