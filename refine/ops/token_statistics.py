"""Cross-entropy, entropy and accuracy of every token, in one pass over pieces of the sequence.

Shape legend: N tokens · P tokens of a piece · D hidden size · V vocabulary. `head` is the output matrix [V, D], tied to
the embedding or not; logits are hidden @ head.T.

The [N, V] logits never exist at once. `token_statistics` is for the next-token loss, whose weights are known before:
it forms the gradients of hidden and head while it has a piece's probabilities (three matrix products a piece, as with
all logits kept), and backward only scales them. Without gradient it makes one product a piece.
`token_log_probs` is for the policy loss, whose gradient is known only later: backward computes the logits of a piece
again. `..._by_logits` are the plain twins.

Under autocast the products run in its dtype, as `model.logits` does; softmax and sums are at least float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine.ops.autocast import compute_dtype

PIECE_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
"""Logits of a piece [numbers]: few enough for a CPU's caches, enough to keep a GPU busy."""


class TokenStatistics(NamedTuple):
    """`loss` [] = sum of weights * cross_entropy, with gradient. Without gradient, in the shape of the targets:
    `cross_entropy` and `entropy` [nats], `correct` (the target is the likeliest token, the first of equals)."""

    loss: Tensor
    cross_entropy: Tensor
    entropy: Tensor
    correct: Tensor


def token_statistics(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor | None = None) -> TokenStatistics:
    """hidden [..., D] after the final norm, targets [...] int64, weights [...] (default 1/N: the mean).

    A target whose weight is 0 costs nothing in the loss but must be a token of the vocabulary.
    """
    shape = targets.shape
    if weights is None:
        weights = torch.full(shape, 1 / max(1, targets.numel()), device=hidden.device)
    flat = hidden.reshape(-1, hidden.shape[-1])
    if not torch.is_grad_enabled():  # a Function does not see that and would form the gradients
        flat, head = flat.detach(), head.detach()
    found = _NextToken.apply(flat, head, targets.reshape(-1), weights.reshape(-1), compute_dtype(flat))
    return TokenStatistics(found[0], *(x.view(shape) for x in found[1:]))


def token_log_probs(hidden: Tensor, head: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) of the targets; hidden [..., D], targets [...] -> [...], with gradient."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    return _LogProbs.apply(flat, head, targets.reshape(-1), temperature, compute_dtype(flat)).view(targets.shape)


def token_statistics_by_logits(
    hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor | None = None
) -> TokenStatistics:
    """The twin of `token_statistics`: all logits at once, gradients by autograd."""
    log_probs = _precise(torch.nn.functional.linear(hidden, head)).log_softmax(-1)
    cross_entropy = -log_probs.gather(-1, targets[..., None])[..., 0]
    loss = cross_entropy.mean() if weights is None else (weights * cross_entropy).sum()
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    correct = log_probs.argmax(-1) == targets
    return TokenStatistics(loss, cross_entropy.detach(), entropy.detach(), correct)


def token_log_probs_by_logits(hidden: Tensor, head: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """The twin of `token_log_probs`."""
    log_probs = (_precise(torch.nn.functional.linear(hidden, head)) / temperature).log_softmax(-1)
    return log_probs.gather(-1, targets[..., None])[..., 0]


class _NextToken(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, ...]:
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        precise = torch.promote_types(dtype, torch.float32)
        cross_entropy = torch.empty(targets.shape, dtype=precise, device=hidden.device)
        entropy, correct = torch.empty_like(cross_entropy), torch.empty_like(targets, dtype=torch.bool)
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_head = torch.zeros_like(head, dtype=torch.promote_types(head.dtype, precise)) if wants_head else None
        weights = weights.to(precise)
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = head.to(dtype)
            for piece in _pieces(hidden, head):
                h, target = hidden[piece].to(dtype), targets[piece, None]
                logits = h @ matrix.T
                torch.eq(logits.argmax(-1), targets[piece], out=correct[piece])
                log_probs = torch.log_softmax(logits, -1, dtype=precise)
                del logits
                torch.neg(log_probs.gather(-1, target)[:, 0], out=cross_entropy[piece])
                probs = log_probs.exp()
                entropy[piece] = -torch.linalg.vecdot(probs, log_probs)
                del log_probs
                if wants_hidden or wants_head:
                    d_logits = _logits_gradient(probs, weights[piece, None], target, dtype)
                    _accumulate(d_logits, h, matrix, piece, d_hidden, d_head)
        loss = (weights * cross_entropy).sum()
        ctx.save_for_backward(d_hidden, None if d_head is None else d_head.to(head.dtype))
        ctx.mark_non_differentiable(cross_entropy, entropy, correct)
        ctx.set_materialize_grads(False)
        return loss, cross_entropy, entropy, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        # not in place: a retained graph may run this twice
        grads = [None if d is None or d_loss is None else d * d_loss.to(d.dtype) for d in ctx.saved_tensors]
        return grads[0], grads[1], None, None, None


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, temperature: float, dtype: torch.dtype
    ) -> Tensor:
        precise = torch.promote_types(dtype, torch.float32)
        chosen = torch.empty(targets.shape, dtype=precise, device=hidden.device)
        normaliser = torch.empty_like(chosen)  # log of the sum over the vocabulary
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = head.to(dtype)
            for piece in _pieces(hidden, head):
                logits = (hidden[piece].to(dtype) @ matrix.T).to(precise) / temperature
                log_probs = torch.log_softmax(logits, -1)
                chosen[piece] = log_probs.gather(-1, targets[piece, None])[:, 0]
                normaliser[piece] = (logits[:, :1] - log_probs[:, :1])[:, 0]
        ctx.save_for_backward(hidden, head, targets, normaliser)
        ctx.temperature, ctx.dtype = temperature, dtype
        return chosen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_chosen: Tensor) -> tuple[Tensor | None, ...]:
        hidden, head, targets, normaliser = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        wide = torch.promote_types(head.dtype, normaliser.dtype)
        d_head = torch.zeros_like(head, dtype=wide) if ctx.needs_input_grad[1] else None
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = head.to(ctx.dtype)
            for piece in _pieces(hidden, head):
                h = hidden[piece].to(ctx.dtype)
                logits = (h @ matrix.T).to(normaliser.dtype).div_(ctx.temperature)
                weight = -(d_chosen[piece, None] / ctx.temperature).to(logits.dtype)
                probs = logits.sub_(normaliser[piece, None]).exp_()
                d_logits = _logits_gradient(probs, weight, targets[piece, None], ctx.dtype)
                _accumulate(d_logits, h, matrix, piece, d_hidden, d_head)
        return d_hidden, None if d_head is None else d_head.to(head.dtype), None, None, None


def _logits_gradient(probs: Tensor, weight: Tensor, target: Tensor, dtype: torch.dtype) -> Tensor:
    """(probs - 1 at the target) · weight in `dtype`: probs [P, V], weight, target [P, 1]. May overwrite probs.

    In another dtype than that of probs it is written once, rounded; probs are not rewritten before.
    """
    if dtype == probs.dtype:
        return probs.mul_(weight).scatter_add_(-1, target, -weight)
    at_target = probs.gather(-1, target) * weight - weight
    rounded = torch.mul(probs, weight, out=torch.empty_like(probs, dtype=dtype))
    return rounded.scatter_(-1, target, at_target.to(dtype))


def _accumulate(
    d_logits: Tensor, h: Tensor, matrix: Tensor, piece: slice, d_hidden: Tensor | None, d_head: Tensor | None
) -> None:
    """Add the gradients of a piece's hidden states and of the head, from that of its logits [P, V]."""
    if d_hidden is not None:
        d_hidden[piece] = d_logits @ matrix
    if d_head is not None and d_head.dtype == d_logits.dtype:
        d_head.addmm_(d_logits.T, h)
    elif d_head is not None:
        d_head += d_logits.T @ h


def _pieces(hidden: Tensor, head: Tensor) -> Iterator[slice]:
    elements = PIECE_ELEMENTS.get(hidden.device.type, PIECE_ELEMENTS["cuda"])
    rows = max(128, elements // head.shape[0])
    for start in range(0, hidden.shape[0], rows):
        yield slice(start, min(start + rows, hidden.shape[0]))


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
