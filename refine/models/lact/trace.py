"""What a LaCT layer keeps of a read, and the memory at any place of it.

Shape legend: N tokens of all documents · G documents · R tapped rows · M tokens that are projected again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from refine.models.lact.memory import LactMemory
from refine.models.lact.recent_tokens import RecentTrace
from refine.models.token_mixer import Inputs, Keep, Trace
from refine.ops.fast_mlp.read import States
from refine.ops.fast_mlp.schedule import pending_after
from refine.ops.layout import Layout, Taps

if TYPE_CHECKING:
    from refine.models.lact.mixer import Lact


class LactTrace(Trace):
    """The states that one read passed through, and its window and chunk tokens: every tap is a view of these.

    `append`: the read was a short one after a memory, and its tokens stand beside those of the memory. Where only ends
    are kept, their tokens are copied out of the read.
    """

    def __init__(self, mixer: Lact, states: States, window: RecentTrace, pending: RecentTrace, append: bool,
                 keep: Keep) -> None:  # fmt: skip
        self.window_size, self.chunk_size = mixer.window, mixer.rule.chunk_size
        self.states, self.window, self.pending, self.append = states, window, pending, append
        self.copied = keep is Keep.ENDS and not append

    def tap(self, taps: Taps, inputs: Inputs | None) -> LactMemory:
        where = taps.documents, taps.counts
        window = remembered(self.window.before.counts, *where, self.window_size)
        pending = unfinished(self.pending.before.counts, *where, self.chunk_size)
        memory = LactMemory(
            *self.states.at(*where),
            self.window.at(*where, window, self.append),
            self.pending.at(*where, pending, self.append),
        )
        return memory.compact() if self.copied else memory


class SparseLactTrace(Trace):
    """Under gradient checkpointing: the states alone; a tap projects the tokens of its window and chunk once more."""

    def __init__(self, mixer: Lact, states: States, before: LactMemory, layout: Layout) -> None:
        self.mixer, self.states, self.before, self.layout = mixer, states, before, layout

    def tap(self, taps: Taps, inputs: Inputs | None) -> LactMemory:
        assert inputs is not None
        where = taps.documents, taps.counts
        window = remembered(self.before.window.counts, *where, self.mixer.window)
        pending = unfinished(self.before.pending.counts, *where, self.mixer.rule.chunk_size)
        pieces = taps.once(
            "pieces", lambda: self._pieces(taps, [max(w, p) for w, p in zip(window, pending, strict=True)])
        )
        starts = [self.layout.starts[g] for g, _, _ in pieces]
        index = torch.cat([torch.arange(s + a, s + b) for s, (_, a, b) in zip(starts, pieces, strict=True)]).to(
            taps.device
        )
        x = inputs(index)
        projected = self.mixer.projected(x, self.mixer.turns(self.layout.position_of_token()[index], x.dtype))
        layout = Layout([b - a for _, a, b in pieces], device=taps.device)
        rows = [
            g if a == 0 else None for g, a, _ in pieces
        ]  # only a piece that starts its document has tokens before it
        piece_of = [
            next(i for i, (h, a, b) in enumerate(pieces) if h == g and a < n <= b) for g, n in zip(*where, strict=True)
        ]
        inside = piece_of, [n - pieces[i][1] for i, n in zip(piece_of, taps.counts, strict=True)]
        return LactMemory(
            *self.states.at(*where),
            RecentTrace(self.before.window.where(rows), layout, projected.window).at(*inside, window, append=False),
            RecentTrace(self.before.pending.where(rows), layout, projected.pending).at(*inside, pending, append=False),
        )

    @staticmethod
    def _pieces(taps: Taps, kept: Sequence[int]) -> list[tuple[int, int, int]]:
        """Pieces (document, from, to) with the last kept[r] new tokens before every tap; joined where they touch."""
        wanted = sorted((g, max(0, n - k), n) for g, n, k in zip(taps.documents, taps.counts, kept, strict=True))
        pieces: list[tuple[int, int, int]] = []
        for g, a, b in wanted:
            if pieces and pieces[-1][0] == g and a <= pieces[-1][2]:
                pieces[-1] = (g, pieces[-1][1], max(b, pieces[-1][2]))
            else:
                pieces.append((g, a, b))
        return pieces


def remembered(before: Sequence[int], documents: Sequence[int], counts: Sequence[int], window: int) -> list[int]:
    """Tokens in the window's memory after counts[r] tokens of document documents[r], which had before[g] of them."""
    return [min(window - 1, before[g] + n) for g, n in zip(documents, counts, strict=True)]


def unfinished(before: Sequence[int], documents: Sequence[int], counts: Sequence[int], chunk_size: int) -> list[int]:
    """Tokens of the open chunk after counts[r] tokens of document documents[r], which had before[g] of them."""
    return [pending_after(before[g] + n, chunk_size) for g, n in zip(documents, counts, strict=True)]
