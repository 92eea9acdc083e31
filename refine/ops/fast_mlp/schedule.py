"""When each document's fast weights are read and when they move, for documents of unequal length and open chunks.

Shape legend: N tokens of all documents · G documents · A documents at one step · C chunk size
· M pending and new tokens.

Step u reads the tokens between the u-th and the (u+1)-th update of every document that has so many. Chunks are counted
from the first token that a memory ever read, so a document that continues a memory starts with an open chunk of
`pending` tokens (1 .. C; 0 if it has read nothing). Documents are sorted by their number of updates, the most first;
the documents of step u+1 are then the first ones of step u.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from refine.ops.fast_mlp.mlp import Tokens
from refine.ops.layout import Layout, moved_together


def pending_after(tokens: int, chunk_size: int) -> int:
    """Tokens of the open chunk after `tokens` tokens in all. A complete chunk stays open until the next token comes."""
    return 0 if tokens == 0 else (tokens - 1) % chunk_size + 1


class Schedule:
    """The steps of one read: `layout`'s documents, with `pending[g]` tokens of an open chunk in front of document g.

    `updates[g]`: chunks of document g that this read closes. `laid_out`: the documents whose pending and new tokens
    `chunks` takes, end to end: all, or with `crossing_only` those with an update.
    """

    def __init__(self, layout: Layout, pending: Sequence[int], chunk_size: int, crossing_only: bool = False) -> None:
        self.layout = layout
        self.pending = tuple(pending)
        self.size = chunk_size
        self.totals = tuple(p + n for p, n in zip(self.pending, layout.lengths, strict=True))
        self.updates = tuple((total - 1) // chunk_size for total in self.totals)
        self.order = sorted(range(layout.documents), key=lambda g: -self.updates[g])
        self.steps = max(self.updates) + 1
        self.active = [sum(1 for n in self.updates if n >= u) for u in range(self.steps)]
        self.laid_out = [g for g in range(layout.documents) if self.updates[g] or not crossing_only]
        ends = list(accumulate(self.totals[g] for g in self.laid_out))
        self.laid_start = {g: end - self.totals[g] for g, end in zip(self.laid_out, ends, strict=True)}
        # then cutting is a change of view; without an update every document has one segment, whatever is pending
        self.even = layout.width is not None and (len(set(self.pending)) == 1 or self.steps == 1)

    def segment(self, g: int, u: int) -> tuple[int, int]:
        """The tokens (from, to) of document g that step u reads; none at step 0 if the open chunk is complete."""
        first = max(0, u * self.size - self.pending[g])
        return first, max(first, min(self.layout.lengths[g], (u + 1) * self.size - self.pending[g]))

    def queries(self, x: Tensor) -> list[Tensor]:
        """x [N, ...] -> for each step [A, n, ...], short segments filled up; n may be 0 at step 0."""
        if self.even:
            sizes = [to - start for start, to in (self.segment(0, u) for u in range(self.steps))]
            return list(x.unflatten(0, (self.layout.documents, -1)).split(sizes, dim=1))
        index, widths, _, _ = self._maps()
        parts = x.index_select(0, index).split([a * n for a, n in zip(self.active, widths, strict=True)])
        return [part.unflatten(0, (a, n)) for part, a, n in zip(parts, self.active, widths, strict=True)]

    def outputs(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of `queries`: [A, n, ...] for each step -> [N, ...]."""
        if self.even:
            return torch.cat(list(parts), dim=1).flatten(0, 1)
        _, _, place, _ = self._maps()
        return torch.cat([part.flatten(0, 1) for part in parts]).index_select(0, place)

    def chunks(self, tokens: Tokens) -> list[Tokens]:
        """tokens [M, ...] of the laid-out documents -> for each step but the last the complete chunks [A, C, ...]."""
        if self.steps == 1:
            return []
        if self.even:
            sizes = [self.size] * (self.steps - 1) + [self.totals[0] - self.size * (self.steps - 1)]
            cut = {name: x.unflatten(0, (len(self.laid_out), -1)).split(sizes, dim=1) for name, x in tokens.items()}
        else:
            _, _, _, index = self._maps()
            sizes = [a * self.size for a in self.active[1:]]
            cut = {
                name: [part.unflatten(0, (-1, self.size)) for part in x.index_select(0, index).split(sizes)]
                for name, x in tokens.items()
            }
        return [{name: parts[u] for name, parts in cut.items()} for u in range(self.steps - 1)]

    def _maps(self) -> tuple[Tensor, list[int], Tensor, Tensor]:
        """The token at each place of `queries`, the width of each step, the place of each token, and the laid-out token
        at each place of `chunks`: made once for all layers, and moved to the device in one transfer."""

        def build() -> tuple[Tensor, list[int], Tensor, Tensor]:
            index, widths, places = self._query_maps()
            index, places, chunks = moved_together([index, places, self._chunk_map()], self.layout.device)
            return index, widths, places, chunks

        return self.layout.once(("maps", self.pending, self.size, len(self.laid_out)), build)

    def _query_maps(self) -> tuple[Tensor, list[int], Tensor]:
        """The token at each place of `queries`, the width of each step, and the place of each token."""
        tokens, places, widths, before = [], torch.zeros(self.layout.tokens, dtype=torch.int64), [], 0
        for u in range(self.steps):
            documents = self.order[: self.active[u]]
            segments = [self.segment(g, u) for g in documents]
            width = max(to - start for start, to in segments)
            for a, (g, (start, to)) in enumerate(zip(documents, segments, strict=True)):
                first = self.layout.starts[g] + start
                steps = torch.arange(width)
                tokens.append((first + steps).clamp(max=self.layout.starts[g] + self.layout.lengths[g] - 1))
                places[first : first + to - start] = before + a * width + steps[: to - start]
            widths.append(width)
            before += len(documents) * width
        return torch.cat(tokens), widths, places

    def _chunk_map(self) -> Tensor:
        """The laid-out token at each place of `chunks`."""
        firsts = [
            self.laid_start[g] + u * self.size for u in range(self.steps - 1) for g in self.order[: self.active[u + 1]]
        ]
        return (torch.tensor(firsts, dtype=torch.int64)[:, None] + torch.arange(self.size)).flatten()
