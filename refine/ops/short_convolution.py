"""Short depthwise causal convolution over documents, with its memory: the last W - 1 inputs.

    y_t = activation(sum_j weight[W - 1 - j] x_{t-j} + bias),   j = 0 .. W - 1

Shape legend: N tokens of all documents · G documents · R tapped rows · F channels · W width of the convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from refine.ops.layout import Ends, Layout, Taps
from refine.ops.row_groups import blocks
from refine.ops.tapped_rows import LaterRows
from refine.ops.without_graph import run


def token_by_token(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, tail: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The twin: x [B, T, F], weight [F, W], tail [B, W - 1, F] (the inputs before x; default: zeros).

    Returns y [B, T, F] without activation and the tail after every token [B, T, W - 1, F].
    """
    width = weight.shape[1]
    tail = x.new_zeros(x.shape[0], width - 1, x.shape[2]) if tail is None else tail
    outputs, tails = [], []
    for t in range(x.shape[1]):
        seen = torch.cat([tail, x[:, t : t + 1]], 1)  # [B, W, F]
        y = (seen * weight.T).sum(1)
        outputs.append(y if bias is None else y + bias)
        tail = seen[:, 1:]
        tails.append(tail)
    return torch.stack(outputs, 1), torch.stack(tails, 1)


class ReadTails:
    """The inputs of a convolution, W - 1 earlier ones before each document's own: gives the tail after any token."""

    def __init__(self, padded: LaterRows, layout: Layout, width: int, dtype: torch.dtype) -> None:
        self.padded, self.layout, self.width, self.dtype = padded, layout, width, dtype  # padded [N + G (W - 1), F]

    def at(self, taps: Taps) -> Tensor:
        """[R, W - 1, F]: the last W - 1 inputs at each tap, with gradient."""
        more = self.width - 1

        def build() -> Tensor:
            document, count = taps.numbers()
            ends = self.layout.start_of(document) + document * more + count
            return (ends[:, None] + torch.arange(more, device=taps.device)).reshape(-1)

        index = taps.once(("tails", self.width), build)
        return self.padded.pick(index).view(taps.rows, more, self.padded.tensor.shape[1]).to(self.dtype)


Tails = ReadTails | Ends


def read(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tail: Tensor | None,
    layout: Layout,
    silu: bool = False,
    kernel: Callable[[Tensor, Tensor, bool], Tensor] | None = None,
) -> tuple[Tensor, Tails]:
    """x [N, F], weight [F, W], tail [G, W - 1, F] or None (zeros) -> y [N, F], with SiLU if `silu`, and the tails.

    x is kept in its own dtype, and a tail is rounded to it; y and the tails have that of the weight. `kernel`: computes
    y from [P, F], the weight and `silu` in the place of PyTorch, in the dtype of x (no bias).
    """
    more = weight.shape[1] - 1
    if tail is not None and layout.decodes:
        return _one_token(x.to(weight.dtype), weight, bias, tail, silu)
    padded = LaterRows(_after_tails(x, tail, more, layout))
    if kernel is None:
        y = run(_Convolution, padded.tensor, weight, bias, silu)
    else:
        y = kernel(padded.tensor, weight, silu)
    return _without_tails(y, more, layout), ReadTails(padded, layout, weight.shape[1], weight.dtype)


def _one_token(x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor, silu: bool) -> tuple[Tensor, Ends]:
    """`read` of one token after each document's tail, in few operations: x [G, F] -> y [G, F]."""
    seen = torch.cat([tail, x[:, None]], 1)  # [G, W, F]
    y = (seen * weight.t()).sum(1)
    y = y if bias is None else y.add_(bias)
    return torch.nn.functional.silu(y, inplace=True) if silu else y, Ends(seen[:, 1:])


class _Convolution(torch.autograd.Function):
    """padded [P, F], weight [F, W], bias [F] or None -> [P - W + 1, F]; in blocks that fit a core's cache.

    Computed in the weight's dtype. Keeps only its input, in its own dtype: the backward pass computes the convolution
    again, which costs less than reading it back.
    """

    @staticmethod
    def forward(ctx: Any, padded: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
        ctx.save_for_backward(padded, weight, bias)
        ctx.silu = silu
        taps = weight.t().contiguous()
        y = taps.new_empty(padded.shape[0] - taps.shape[0] + 1, padded.shape[1])
        for start, end in ((rows.start, rows.stop) for rows in blocks(y)):
            block = _convolved(padded[start : end + taps.shape[0] - 1].to(y.dtype), taps, bias, y[start:end])
            if silu:
                torch.nn.functional.silu(block, inplace=True)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        padded, weight, bias = ctx.saved_tensors
        taps = weight.t().contiguous()
        dpadded, dtaps = torch.zeros_like(padded, dtype=taps.dtype), torch.zeros_like(taps)
        dbias = None if bias is None else torch.zeros_like(bias)
        for start, end in ((rows.start, rows.stop) for rows in blocks(grads[0])):
            dy, around = grads[0][start:end], padded[start : end + taps.shape[0] - 1].to(taps.dtype)
            if ctx.silu:
                dy = torch.ops.aten.silu_backward(dy, _convolved(around, taps, bias, torch.empty_like(dy)))
            for j in range(taps.shape[0]):
                dpadded[start + j : end + j].addcmul_(dy, taps[j])
                dtaps[j] += (dy * around[j : j + end - start]).sum(0)
            if dbias is not None:
                dbias += dy.sum(0)
        return dpadded.to(padded.dtype), dtaps.t(), dbias, None


def _convolved(padded: Tensor, taps: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """padded [n + W - 1, F], taps [W, F] -> out [n, F], without activation."""
    torch.mul(padded[: out.shape[0]], taps[0], out=out)
    for j in range(1, taps.shape[0]):
        out.addcmul_(padded[j : j + out.shape[0]], taps[j])
    return out if bias is None else out.add_(bias)


def _places(more: int, layout: Layout) -> Tensor:
    """[N]: the index of each token when every document comes after its `more` earlier inputs."""

    def build() -> Tensor:
        return torch.arange(layout.tokens, device=layout.device) + (layout.document_of_token() + 1) * more

    return layout.once(("tail places", more), build)


def _after_tails(x: Tensor, tail: Tensor | None, more: int, layout: Layout) -> Tensor:
    tail = x.new_zeros(layout.documents, more, x.shape[1]) if tail is None else tail.to(x.dtype)
    if layout.width is not None:
        return torch.cat([tail, x.view(layout.documents, layout.width, -1)], 1).flatten(0, 1)
    both = torch.cat([x, tail.flatten(0, 1)])
    return both.index_select(0, layout.once(("tail order", more), lambda: _order(more, layout)))


def _order(more: int, layout: Layout) -> Tensor:
    """[N + G * more]: indices into [tokens, tails], in the order tail of document 0, document 0, tail of 1, ..."""
    device, tails = layout.device, layout.documents * more
    order = torch.empty(layout.tokens + tails, dtype=torch.int64, device=device)
    document = torch.arange(layout.documents, device=device)
    tail_places = (layout.start_of(document) + document * more)[:, None] + torch.arange(more, device=device)
    order[tail_places.reshape(-1)] = layout.tokens + torch.arange(tails, device=device)
    order[_places(more, layout)] = torch.arange(layout.tokens, device=device)
    return order


def _without_tails(y: Tensor, more: int, layout: Layout) -> Tensor:
    """y [N + G * more - more, F], which starts at the first document's first token -> [N, F]."""
    if layout.documents == 1:
        return y
    if layout.width is not None:
        last = y.new_zeros(more, y.shape[1])
        return torch.cat([y, last]).view(layout.documents, layout.width + more, -1)[:, : layout.width].flatten(0, 1)
    return y.index_select(0, _places(more, layout) - more)
