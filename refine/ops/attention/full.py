"""Causal attention of documents that start fresh: each token sees itself and those before it in its document.

Shape legend: N tokens of all documents · T new tokens of one · P tokens before them · A query heads
· h heads of keys and values, each used by A / h query heads in a row · K width of a head · W window.

torch's scaled_dot_product_attention, once for documents of one length, else document by document: no score leaves a
document, and nothing as large as T × T is made. With a window, `refine.ops.attention.window`. `plain` is the twin.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from refine.ops.attention import window as sliding
from refine.ops.layout import Layout


def plain(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """The twin, for one document: q [T, A, K], the last T tokens of k, v [P + T, h, K] -> [T, A, K]; every score."""
    new, seen = q.shape[0], k.shape[0]
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    back = torch.arange(seen - new, seen, device=q.device)[:, None] - torch.arange(seen, device=q.device)
    hidden = back < 0 if window is None else (back < 0) | (back >= window)
    scores = torch.einsum("qhk,shk->hqs", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hqs,shk->qhk", scores.masked_fill(hidden, float("-inf")).softmax(-1), v)


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, window: int | None = None) -> Tensor:
    """q [N, A, K], k, v [N, h, K], documents as in `layout` -> [N, A, K]. Scores are divided by sqrt(K)."""
    if window is not None and layout.longest > window:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        return sliding.attend(q, k, v, layout, [0] * layout.documents, window)
    if layout.width is not None:
        return _causal(*(x.unflatten(0, (layout.documents, -1)) for x in (q, k, v))).flatten(0, 1)
    documents = zip(*(x.split(layout.lengths) for x in (q, k, v)), strict=True)
    return torch.cat([_causal(*(x[None] for x in one))[0] for one in documents])


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [G, T, A, K], k, v [G, T, h, K] -> [G, T, A, K]."""
    grouped = q.shape[2] != k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped).transpose(1, 2)
