"""What a LaCT layer keeps of a read, and the memory after any of its tokens.

Shape legend: N tokens of all documents · G documents · R tapped rows · M tokens that are projected again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from refine.models.lact.memory import LactMemory
from refine.models.lact.recent_tokens import RecentTrace, Tokens
from refine.models.token_mixer import Keep, MixerInputs, Trace
from refine.ops.fast_mlp.read import States
from refine.ops.fast_mlp.schedule import pending_after
from refine.ops.layout import Layout, Taps


class Sizes(NamedTuple):
    """Of a LaCT layer [tokens]: W of its attention window, C of a chunk."""

    window: int
    chunk: int


Again = Callable[[Tensor, Tensor], tuple[Tokens, Tokens]]
"""mixer inputs [M, D] and true positions [M] of tokens -> what their window and their chunk remember of them."""


class LactTrace(Trace):
    """The states of one read and the tokens of its windows and chunks: every tap is a view of these.

    `append`: the read was a short one after a memory, and its tokens stand beside those of the memory. Under Keep.ENDS
    the last tokens are copied out of the read, so that the read itself can be freed.
    """

    def __init__(
        self, sizes: Sizes, states: States, window: RecentTrace, pending: RecentTrace, append: bool, keep: Keep
    ) -> None:
        self.sizes = sizes
        self.states, self.window, self.pending, self.append = states, window, pending, append
        self.copied = keep is Keep.ENDS and not append

    def tap(self, taps: Taps, inputs: MixerInputs | None) -> LactMemory:
        where = taps.documents, taps.counts
        window = remembered(self.window.before.counts, *where, self.sizes.window)
        pending = unfinished(self.pending.before.counts, *where, self.sizes.chunk)
        memory = LactMemory(
            *self.states.at(*where),
            self.window.at(*where, window, self.append),
            self.pending.at(*where, pending, self.append),
        )
        return memory.compact() if self.copied else memory


class SparseLactTrace(Trace):
    """Under gradient checkpointing: keeps the states only; a tap projects its window's and chunk's tokens again."""

    def __init__(self, sizes: Sizes, again: Again, states: States, before: LactMemory, layout: Layout) -> None:
        self.sizes, self.again, self.states, self.before, self.layout = sizes, again, states, before, layout

    def tap(self, taps: Taps, inputs: MixerInputs | None) -> LactMemory:
        assert inputs is not None
        where = taps.documents, taps.counts
        window = remembered(self.before.window.counts, *where, self.sizes.window)
        pending = unfinished(self.before.pending.counts, *where, self.sizes.chunk)
        longer = [max(w, p) for w, p in zip(window, pending, strict=True)]
        pieces = taps.once("pieces", lambda: self._pieces(taps, longer))
        starts = [self.layout.starts[g] for g, _, _ in pieces]
        spans = [torch.arange(s + a, s + b) for s, (_, a, b) in zip(starts, pieces, strict=True)]
        index = torch.cat(spans).to(taps.device)
        of_window, of_chunk = self.again(inputs(index), self.layout.position_of_token()[index])
        layout = Layout([b - a for _, a, b in pieces], device=taps.device)
        # only a piece at the start of its document continues the memory from before the read
        rows = [g if a == 0 else None for g, a, _ in pieces]
        piece_of = [
            next(i for i, (h, a, b) in enumerate(pieces) if h == g and a < n <= b) for g, n in zip(*where, strict=True)
        ]
        inside = piece_of, [n - pieces[i][1] for i, n in zip(piece_of, taps.counts, strict=True)]
        return LactMemory(
            *self.states.at(*where),
            RecentTrace(self.before.window.where(rows), layout, of_window).at(*inside, window, append=False),
            RecentTrace(self.before.pending.where(rows), layout, of_chunk).at(*inside, pending, append=False),
        )

    @staticmethod
    def _pieces(taps: Taps, kept: Sequence[int]) -> list[tuple[int, int, int]]:
        """Pieces (document, from, to) of the last kept[r] new tokens before each tap; pieces that touch are joined."""
        wanted = sorted((g, max(0, n - k), n) for g, n, k in zip(taps.documents, taps.counts, kept, strict=True))
        pieces: list[tuple[int, int, int]] = []
        for g, a, b in wanted:
            if pieces and pieces[-1][0] == g and a <= pieces[-1][2]:
                pieces[-1] = (g, pieces[-1][1], max(b, pieces[-1][2]))
            else:
                pieces.append((g, a, b))
        return pieces


def remembered(before: Sequence[int], documents: Sequence[int], counts: Sequence[int], window: int) -> list[int]:
    """Tokens that each row's window remembers after counts[r] tokens of documents[r]; before[g]: before the read."""
    return [min(window - 1, before[g] + n) for g, n in zip(documents, counts, strict=True)]


def unfinished(before: Sequence[int], documents: Sequence[int], counts: Sequence[int], chunk_size: int) -> list[int]:
    """Tokens that each row's open chunk holds after counts[r] tokens of documents[r]; before[g]: before the read."""
    return [pending_after(before[g] + n, chunk_size) for g, n in zip(documents, counts, strict=True)]
