"""Step 3 of METHOD.md, with the prefix read once: rollouts are sampled and scored from the memory tapped while reading.

Shape legend: B rows · T tokens of a row · R places · n rollouts of a place · k tokens of a rollout · D hidden size.

Sampling runs from the detached memory, token by token; scoring reads all rollouts at once from the same memory with
gradient, which flows through the tap into the read of the prefix. The first token is scored from the state of the read
itself. Per layer that is T + (k - 1) R n + k R n tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from refine.objective.documents import Places
from refine.ops.token_statistics import token_log_probs


class Reader(Protocol):
    """What a step needs of a model and a batch; `OneRead` here, and the twin in `by_rereading`."""

    hidden: Tensor
    """[B, T, D] states after the final norm, with gradient."""

    def sample(
        self, places: Places, rollouts: int, length: int, seeds: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Draw tokens [R, n, k] int64 after each place; seeds [R * n]. Returns them and their log-probabilities."""

    def score(self, places: Places, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """tokens [R, n, k] -> log-probabilities [R, n, k] with gradient, and states after each [R, n, k, D] without."""


class OneRead:
    """The batch read once, tappable. The memory at the places is tapped once, by whichever is called first."""

    def __init__(self, model: Any, tokens: Tensor, lengths: Sequence[Sequence[int]] | None, tappable: bool) -> None:
        self.model = model
        self.reading = model.read(tokens, tappable=tappable, lengths=lengths)
        self.hidden: Tensor = self.reading.hidden
        self._tapped: Any = None

    def sample(
        self, places: Places, rollouts: int, length: int, seeds: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """See Reader.sample."""
        memory, state = self._starts(places, rollouts)
        with torch.no_grad():
            drawn = self.model.continue_sampled(memory, state.detach().flatten(0, 1), length, seeds, temperature)
        return drawn.tokens.view(-1, rollouts, length), drawn.log_probs.view(-1, rollouts, length)

    def score(self, places: Places, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """See Reader.score."""
        memory, state = self._starts(places, tokens.shape[1])
        hidden = self.model.read(tokens.flatten(0, 1), memory).hidden.unflatten(0, tokens.shape[:2])
        before = torch.cat([state[:, :, None], hidden[:, :, :-1]], 2)
        return token_log_probs(before, self.model.lm_head.weight, tokens, temperature), hidden.detach()

    def _starts(self, places: Places, rollouts: int) -> tuple[Any, Tensor]:
        """The memory of R * n rows at the places, and the state [R, n, D] after each place's last token."""
        if self._tapped is None:
            positions = places.positions()
            memory = self.reading.tap(positions.clamp(min=1).to(self.hidden.device))
            if len(places) < positions.numel():
                memory = memory.select(places.row * positions.shape[1] + places.column)
            self._tapped = memory if rollouts == 1 else memory.repeat(rollouts)
        there = self.hidden.device
        state = self.hidden[places.row.to(there), (places.position - 1).to(there)]
        return self._tapped, state[:, None].expand(-1, rollouts, -1)
