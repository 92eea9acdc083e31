"""The twin of the one read: every prefix is read again, to sample, to score and to train. The published code does the
same (arXiv 2602.16704), but pads; here each document and each prefix is read alone.

Shape legend: as in `rollouts`. A step costs about 8 next-token steps at c = 8: 4 for the gradient of 8 prefixes that
are half the document on average, a third of that for each read without gradient, and 1 for the document itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from refine.models.batch import Batch
from refine.objective.documents import Documents, RolloutStarts
from refine.objective.rollouts import Reader
from refine.ops.token_statistics import token_log_probs


class Rereading:
    """The strategy that reads a prefix from its document's first token whenever it needs it: slow and obviously right.

    ``next_sequence_step(model, tokens, settings, seeds, read=Rereading())`` is the twin that tests and benchmarks use.
    """

    def __call__(self, model: Any, tokens: Tensor, documents: Documents, tappable: bool) -> Reader:
        """See `refine.objective.rollouts.ReadingStrategy`."""
        Batch.packed(tokens, documents.lengths, None)  # refuses lengths that do not fit, as `model.read` does
        return _PrefixReader(model, tokens, documents)


class _PrefixReader:
    """Reads each document once for `hidden`, then each prefix as often as it is needed."""

    def __init__(self, model: Any, tokens: Tensor, documents: Documents) -> None:
        self.model, self.tokens, self.documents = model, tokens, documents
        rows: list[list[Tensor]] = [[] for _ in range(tokens.shape[0])]
        for d in documents.all:
            rows[d.row].append(model.read(tokens[d.row, None, d.start : d.start + d.length]).hidden[0])
        joined = [torch.cat(row) for row in rows]
        self.hidden = torch.stack(
            [torch.nn.functional.pad(row, (0, 0, 0, tokens.shape[1] - row.shape[0])) for row in joined]
        )

    def sample(
        self, starts: RolloutStarts, rollouts: int, length: int, seeds: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """See Reader.sample."""
        drawn = []
        with torch.no_grad():
            for r in range(len(starts)):
                read = self.model.read(self._prefix(starts, r))
                state = read.hidden[:, -1].expand(rollouts, -1)
                own = seeds[r * rollouts : (r + 1) * rollouts]
                drawn.append(self.model.continue_sampled(read.memory.repeat(rollouts), state, length, own, temperature))
        return torch.stack([d.tokens for d in drawn]), torch.stack([d.log_probs for d in drawn])

    def score(self, starts: RolloutStarts, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """See Reader.score. As published: one read without gradient for the states, then one with it for training."""
        with torch.no_grad():
            hidden = [self._read_on(starts, r, tokens[r])[:, -tokens.shape[2] :] for r in range(len(starts))]
        log_probs = []
        for r in range(len(starts)):
            before = self._read_on(starts, r, tokens[r])[:, -tokens.shape[2] - 1 : -1]
            log_probs.append(token_log_probs(before, self.model.lm_head.weight, tokens[r], temperature))
        return torch.stack(log_probs), torch.stack(hidden)

    def _prefix(self, starts: RolloutStarts, r: int) -> Tensor:
        """[1, t] tokens of the document before start r."""
        d = self.documents.all[int(starts.document[r])]
        return self.tokens[d.row, None, d.start : int(starts.position[r])]

    def _read_on(self, starts: RolloutStarts, r: int, rollouts: Tensor) -> Tensor:
        """States [n, t + k, D] of the prefix and each of rollouts [n, k], read as one sequence from the start."""
        prefix = self._prefix(starts, r).expand(rollouts.shape[0], -1)
        return self.model.read(torch.cat([prefix, rollouts], 1)).hidden
