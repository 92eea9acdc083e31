"""The twin of the one-read step: every prefix is read again, to sample, to score and to train (arXiv 2602.16704 as
published, but unpadded: each document and each prefix is read alone).

Shape legend: as in `rollouts`. A step costs about 8 next-token steps at c = 8: 4 for the gradient of 8 prefixes that
are half the document on average, a third of that for each read without gradient, and 1 for the document itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from refine.models.batch import Batch
from refine.objective.documents import Documents, Places
from refine.objective.result import StepResult
from refine.objective.step import run
from refine.ops.token_statistics import token_log_probs
from refine.settings.objective import ObjectiveSettings


class Rereading:
    """A batch of which every part is read from its document's first token, whenever it is needed."""

    def __init__(self, model: Any, tokens: Tensor, lengths: Sequence[Sequence[int]] | None) -> None:
        Batch.packed(tokens, lengths, None)  # lengths that do not fit are refused as in `model.read`
        self.model, self.tokens = model, tokens
        self.documents = Documents(tokens.shape, lengths)
        rows = [[model.read(tokens[d.row, None, d.start : d.start + d.length]).hidden[0]
                 for d in self.documents.all if d.row == b] for b in range(tokens.shape[0])]  # fmt: skip
        padded = [torch.cat(row) for row in rows]
        self.hidden = torch.stack(
            [torch.nn.functional.pad(row, (0, 0, 0, tokens.shape[1] - row.shape[0])) for row in padded]
        )

    def prefix(self, places: Places, r: int) -> Tensor:
        """[1, t] tokens of the document up to place r."""
        d = self.documents.all[int(places.document[r])]
        return self.tokens[d.row, None, d.start : int(places.position[r])]

    def sample(
        self, places: Places, rollouts: int, length: int, seeds: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """See Reader.sample."""
        drawn = []
        with torch.no_grad():
            for r in range(len(places)):
                read = self.model.read(self.prefix(places, r))
                state = read.hidden[:, -1].expand(rollouts, -1)
                own = seeds[r * rollouts : (r + 1) * rollouts]
                drawn.append(self.model.continue_sampled(read.memory.repeat(rollouts), state, length, own, temperature))
        return torch.stack([d.tokens for d in drawn]), torch.stack([d.log_probs for d in drawn])

    def score(self, places: Places, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """See Reader.score. As published: states from a read without gradient, then one with it for training."""
        with torch.no_grad():
            hidden = [self._after(places, r, tokens[r])[:, -tokens.shape[2] :] for r in range(len(places))]
        log_probs = []
        for r in range(len(places)):
            before = self._after(places, r, tokens[r])[:, -tokens.shape[2] - 1 : -1]
            log_probs.append(token_log_probs(before, self.model.lm_head.weight, tokens[r], temperature))
        return torch.stack(log_probs), torch.stack(hidden)

    def _after(self, places: Places, r: int, rollouts: Tensor) -> Tensor:
        """States [n, t + k, D] of the prefix and each of rollouts [n, k], read as one sequence from the start."""
        prefix = self.prefix(places, r).expand(rollouts.shape[0], -1)
        return self.model.read(torch.cat([prefix, rollouts], 1)).hidden


def next_sequence_step(
    model: Any,
    tokens: Tensor,
    settings: ObjectiveSettings,
    seeds: Tensor,
    *,
    lengths: Sequence[Sequence[int]] | None = None,
    positions: Tensor | None = None,
    rollouts: Tensor | None = None,
    reuse: StepResult | None = None,
    ntp_tokens: int | None = None,
    rollout_tokens: int | None = None,
) -> StepResult:
    """As `refine.objective.next_sequence_step`, slower and obviously right."""
    reader = Rereading(model, tokens, lengths)
    return run(reader, model.lm_head.weight, tokens, settings, seeds, lengths=lengths, positions=positions,
               rollouts=rollouts, reuse=reuse, ntp_tokens=ntp_tokens, rollout_tokens=rollout_tokens)  # fmt: skip
