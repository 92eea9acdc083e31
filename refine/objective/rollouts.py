"""Rollouts, with the prefix read once (docs/method.md, Rollouts): sampled and scored from the memory that is tapped
while the text is read.

Shape legend: B rows · T tokens of a row · R rollout starts · n rollouts of a start · k tokens of a rollout
· D hidden size.

Sampling runs from the detached memory, token by token. Scoring reads all rollouts at once from the same memory, with
gradient, which flows through the tap into the read of the prefix. The first token is scored from the state of that
read. Per layer that is T + (k - 1) R n + k R n tokens.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from refine.models.recomputation import uncounted
from refine.objective.documents import Documents, RolloutStarts
from refine.ops.token_statistics import token_log_probs


class Reader(Protocol):
    """A batch that was read, from which a step samples and scores rollouts."""

    hidden: Tensor
    """[B, T, D] states after the final norm, with gradient."""

    def sample(
        self, starts: RolloutStarts, rollouts: int, length: int, seeds: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Draw tokens [R, n, k] int64 after each start; seeds [R * n]. Returns them and their log-probabilities."""

    def score(self, starts: RolloutStarts, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """tokens [R, n, k] -> log-probabilities [R, n, k] with gradient, and states after each [R, n, k, D] without."""


class ReadingStrategy(Protocol):
    """How a step reads: `OneRead`, or its slow twin `refine.objective.rereading.Rereading`."""

    def __call__(self, model: Any, tokens: Tensor, documents: Documents, tappable: bool) -> Reader:
        """Read tokens [B, T]. `tappable`: rollouts may follow. Raises ModelError: as `model.read`."""


def stand_in(reader: Reader, rows: int, length: int, temperature: float) -> Tensor:
    """0, with a graph: what a process without a start does while others roll out, where processes share the model's
    blocks (FSDP2) and each call of a block is an exchange. A rollout after the first of `rows` rows' first token."""
    one = torch.ones(1, dtype=torch.int64)
    starts = RolloutStarts((rows, 1), one - 1, one - 1, one - 1, one)
    seeds = torch.zeros(1, dtype=torch.int64, device=reader.hidden.device)
    with uncounted():
        drawn, _ = reader.sample(starts, 1, length, seeds, temperature)
        return reader.score(starts, drawn, temperature)[0].sum() * 0.0


class OneRead:
    """The strategy that reads every token of the batch once, and taps the memory where rollouts start."""

    def __call__(self, model: Any, tokens: Tensor, documents: Documents, tappable: bool) -> Reader:
        """See ReadingStrategy."""
        return _TappableReader(model, model.read(tokens, tappable=tappable, lengths=documents.lengths))


class _TappableReader:
    """Taps the memory at the rollout starts once, in the first call of `sample` or `score`."""

    def __init__(self, model: Any, reading: Any) -> None:
        self.model, self.reading = model, reading
        self.hidden: Tensor = reading.hidden
        self._tapped: Any = None
        self._sampled = False  # the rollouts are the model's own

    def sample(
        self, starts: RolloutStarts, rollouts: int, length: int, seeds: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """See Reader.sample."""
        memory, state = self._at(starts, rollouts)
        with torch.no_grad():
            drawn = self.model.continue_sampled(memory, state.detach().flatten(0, 1), length, seeds, temperature)
        self._sampled = True
        return drawn.tokens.view(-1, rollouts, length), drawn.log_probs.view(-1, rollouts, length)

    def score(self, starts: RolloutStarts, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """See Reader.score."""
        memory, state = self._at(starts, tokens.shape[1])
        read = self.model.read(tokens.flatten(0, 1), memory, checked=self._sampled)
        hidden = read.hidden.unflatten(0, tokens.shape[:2])
        before = torch.cat([state[:, :, None], hidden[:, :, :-1]], 2)
        return token_log_probs(before, self.model.lm_head.weight, tokens, temperature), hidden.detach()

    def _at(self, starts: RolloutStarts, rollouts: int) -> tuple[Any, Tensor]:
        """The memory of R * n rows at the starts, and the state [R, n, D] after the last token before each."""
        if self._tapped is None:
            positions = starts.positions()
            memory = self.reading.tap(positions.clamp(min=1))
            if len(starts) < positions.numel():
                memory = memory.select(starts.row * positions.shape[1] + starts.column)
            self._tapped = memory if rollouts == 1 else memory.repeat(rollouts)
        there = starts.on(self.hidden.device)
        state = self.hidden[there.row, there.position - 1]
        return self._tapped, state[:, None].expand(-1, rollouts, -1)
