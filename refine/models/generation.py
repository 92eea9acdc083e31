"""Continuations from a memory, greedy and sampled, at a constant cost for each token (full attention, in hybrids, looks
at all earlier tokens).

Shape legend: R rows of a memory · k tokens of a continuation · D hidden size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from refine.errors import ModelError
from refine.models.memory import Memory, Reading
from refine.models.one_token import reader
from refine.ops.layout import on_device
from refine.ops.one_thread import one_thread_if_small
from refine.ops.seeded_draws import uniform

Each = Callable[[Tensor], None]
"""Called with the tokens [R] of each step as soon as they are chosen: to show a text while it is written."""


def _nothing(tokens: Tensor) -> None:
    """The `Each` of a caller that waits for the whole continuation."""


class LanguageModel(Protocol):
    """What a continuation needs of a model: reading after a memory, and the head."""

    def read(self, tokens: Tensor, memory: Memory | None = None, *, checked: bool = False) -> Reading:
        """Read tokens [R, T] int64 after `memory` (R rows). `checked`: they are the model's own, and need no check."""

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., D] after the final norm -> [..., V]."""

    def num_parameters(self) -> int:
        """How many parameters it has: multiply-adds of a token."""


@dataclass(frozen=True)
class Continuation:
    """The tokens that a model writes after a memory.

    tokens [R, k] int64: a row's first stop token is repeated to its end.
    lengths [R] int64: tokens up to and including the stop token, or k.
    log_probs [R, k]: log-probability of each token under the distribution that it was drawn from (at `temperature`).
    hidden [R, k, D]: the state (after the final norm) that predicted each token: hidden[:, 0] is the state after the
        memory's last token, hidden[:, j] the state after reading token j - 1.
    memory: after all tokens except the last, which is not read.
    """

    tokens: Tensor
    lengths: Tensor
    log_probs: Tensor
    hidden: Tensor
    memory: Memory


@torch.no_grad()
def continue_greedily(
    model: LanguageModel,
    memory: Memory,
    hidden: Tensor,
    tokens: int,
    stop: Sequence[int] = (),
    each: Each = _nothing,
) -> Continuation:
    """Write `tokens` tokens after `memory` (R rows), each the likeliest; the smallest of equally likely ones.

    `hidden` [R, D]: the state after the memory's last token. Stops early when every row has written one of `stop`.
    `each`: called with every step's tokens [R] at once. Raises ModelError: `hidden` of another shape, or no token.
    """
    return _continue(model, memory, hidden, tokens, stop, 1.0, lambda log_probs, step: log_probs.argmax(-1), each)


@torch.no_grad()
def continue_sampled(
    model: LanguageModel,
    memory: Memory,
    hidden: Tensor,
    tokens: int,
    seeds: Tensor,
    temperature: float = 1.0,
    stop: Sequence[int] = (),
    each: Each = _nothing,
) -> Continuation:
    """Write tokens drawn from softmax(logits / temperature); other arguments as in `continue_greedily`.

    `seeds` [R] int64: the draws of row r depend only on seeds[r] and the step, whatever the batch. No token is masked.
    Raises ModelError as `continue_greedily`, and for seeds of another shape or a temperature that is not above 0.
    """
    if seeds.shape != (memory.rows,) or seeds.dtype != torch.int64:
        raise ModelError(f"seeds must be int64 of shape [{memory.rows}], not {seeds.dtype} of {tuple(seeds.shape)}")
    if not temperature > 0:
        raise ModelError(
            f"temperature is {temperature}: expected a number above 0; use continue_greedily for the likeliest tokens"
        )
    steps = torch.arange(tokens, device=hidden.device)
    drawn = uniform(seeds.to(hidden.device)[:, None], steps)  # of all steps at once: these are many small operations

    def draw(log_probs: Tensor, step: int) -> Tensor:
        cumulative = log_probs.double().exp().cumsum(-1)
        threshold = drawn[:, step, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=log_probs.shape[-1] - 1)

    return _continue(model, memory, hidden, tokens, stop, temperature, draw, each)


def _continue(
    model: LanguageModel,
    memory: Memory,
    hidden: Tensor,
    tokens: int,
    stop: Sequence[int],
    temperature: float,
    choose: Callable[[Tensor, int], Tensor],
    each: Each,
) -> Continuation:
    if hidden.ndim != 2 or hidden.shape[0] != memory.rows or tokens < 1:
        raise ModelError(
            f"expected hidden [{memory.rows}, D] and at least 1 token, not {tuple(hidden.shape)} and {tokens}"
        )
    memory, stops = memory.detach(), on_device(stop, hidden.device) if stop else None
    written: list[Tensor] = []
    log_probs, states = [], []
    ended = torch.zeros(memory.rows, dtype=torch.bool, device=hidden.device)
    lengths = torch.zeros(memory.rows, dtype=torch.int64, device=hidden.device)
    reading = reader(model, memory, tokens)
    with one_thread_if_small(memory.rows * model.num_parameters(), hidden.device):
        for step in range(tokens):
            if step:
                hidden = reading.read(written[-1])
            logits = model.logits(hidden).to(torch.promote_types(hidden.dtype, torch.float32))
            scores = torch.log_softmax(logits / temperature, -1)
            token = choose(scores, step)
            if written:
                token = torch.where(ended, written[-1], token)
            each(token)
            written.append(token)
            log_probs.append(scores.gather(-1, token[:, None])[:, 0])
            states.append(hidden)
            lengths += ~ended
            if stops is not None:
                ended |= torch.isin(token, stops)
                if bool(ended.all()):
                    break
    memory = reading.memory
    return Continuation(torch.stack(written, 1), lengths, torch.stack(log_probs, 1), torch.stack(states, 1), memory)
