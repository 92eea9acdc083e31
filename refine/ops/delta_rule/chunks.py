"""Documents cut into chunks that are processed all at once.

Shape legend: N tokens · G documents · X chunks of all documents · C tokens of a chunk · H heads.

Chunks are in the order in which a loop over time needs them: the first chunk of every document, then the second of
every document that has one, and so on, the longest documents first. The chunks of step j are then one slice, and no
step works on a document that has ended. A document's last chunk is filled up with padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from refine.ops.layout import Layout, Taps
from refine.ops.without_graph import run

CACHED_CHUNKS = 16  # chunks of one head whose intermediate results fit in a core's cache


class Chunks:
    """How the documents of `layout` are cut into chunks of `size` tokens (fewer where every document is shorter)."""

    def __init__(self, layout: Layout, size: int) -> None:
        self.layout = layout
        self.size = min(size, layout.longest)
        counts = [-(-n // self.size) for n in layout.lengths]
        order = sorted(range(layout.documents), key=lambda g: -counts[g])
        self.rank = [0] * layout.documents  # place of each document within a step
        for place, g in enumerate(order):
            self.rank[g] = place
        self.active = [sum(1 for n in counts if n > j) for j in range(max(counts))]  # documents still read at step j
        self.offset = [0]  # first chunk of step j
        for n in self.active:
            self.offset.append(self.offset[-1] + n)
        self.total = self.offset[-1]
        self.padded = self.total * self.size != layout.tokens
        self._even = layout.width is not None and layout.width % self.size == 0  # then cutting is a change of view
        self.order: Tensor | None = None
        if not self._even:
            rows = (order, self.rank, self.offset, *self._ends(counts))
            numbers = layout.tensor([n for row in rows for n in row]).split([len(row) for row in rows])
            self.order = None if order == list(range(layout.documents)) else numbers[0]
            self._rank, self._offset = numbers[1], numbers[2]
            self._token, self._place = self._maps(*numbers[3:])

    @staticmethod
    def of(layout: Layout, size: int) -> Chunks:
        """The chunks of `layout`, made once for all layers."""
        return layout.once(("chunks", size), lambda: Chunks(layout, size))

    def _ends(self, counts: Sequence[int]) -> tuple[list[int], list[int]]:
        """Of each document in order of its last chunk: how many padding places that has, and the first of them minus
        the padding places of the documents before."""
        places = zip(counts, self.rank, self.layout.lengths, strict=True)
        last = sorted(((self.offset[n - 1] + rank) * self.size, n * self.size - length) for n, rank, length in places)
        missing = [m for _, m in last]
        before = (0, *accumulate(missing))
        return missing, [chunk + self.size - m - b for (chunk, m), b in zip(last, before, strict=False)]

    def _maps(self, missing: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """token [X*C]: the token at each place (a padding place repeats its chunk's first); place [N]: the inverse."""
        layout, places = self.layout, self.total * self.size
        document, offset = layout.document_of_token(), layout.offset_of_token()
        chunk = self._offset[offset // self.size] + self._rank[document]
        place = chunk * self.size + offset % self.size
        token = torch.empty(places, dtype=torch.int64, device=layout.device)
        token[place] = torch.arange(layout.tokens, device=layout.device)
        padding = torch.repeat_interleave(first, missing, output_size=places - layout.tokens)
        self._padding = padding + torch.arange(places - layout.tokens, device=layout.device)
        token[self._padding] = token[self._padding // self.size * self.size]
        return token, place

    def cut(self, x: Tensor) -> Tensor:
        """x [N, H, ...] -> [X, H, C, ...], zero at padding, with gradient."""
        return run(_Cut, x, self)

    def join(self, x: Tensor) -> Tensor:
        """x [X, H, C, ...] -> [N, H, ...], padding dropped, with gradient."""
        return run(_Join, x, self)

    def _cut(self, x: Tensor) -> Tensor:
        if self._even:
            by_document = x.reshape(self.layout.documents, -1, self.size, *x.shape[1:])
            return by_document.permute(1, 0, 3, 2, *range(4, by_document.ndim)).flatten(0, 1).contiguous()
        chunked = x.index_select(0, self._token).view(self.total, self.size, *x.shape[1:]).transpose(1, 2).contiguous()
        if self.padded:
            chunk, place = self._padding // self.size, self._padding % self.size
            chunked[chunk, :, place] = 0
        return chunked

    def _join(self, x: Tensor) -> Tensor:
        if self._even:
            by_step = x.reshape(-1, self.layout.documents, *x.shape[1:])
            return by_step.permute(1, 0, 3, 2, *range(4, by_step.ndim)).reshape(
                self.layout.tokens, x.shape[1], *x.shape[3:]
            )
        flat = x.transpose(1, 2).reshape(self.total * self.size, x.shape[1], *x.shape[3:])
        return flat.index_select(0, self._place)

    def groups(self, heads: int) -> list[range]:
        """The steps, in order, in groups that are processed at once: few enough chunks for a core's cache."""

        def build() -> list[range]:
            limit = CACHED_CHUNKS if self.layout.device.type == "cpu" else self.total * heads
            groups, first = [], 0
            for j in range(1, len(self.active) + 1):
                if j == len(self.active) or (self.offset[j + 1] - self.offset[first]) * heads > limit:
                    groups.append(range(first, j))
                    first = j
            return groups

        return self.layout.once(("groups", self.size, heads), build)

    def ends_all(self, taps: Taps) -> bool:
        """Whether `taps` are the ends of all documents in order, each of them one full chunk (a step of decoding)."""
        single = self._even and self.total == self.layout.documents
        return single and taps.counts == self.layout.lengths and taps.documents == tuple(range(self.total))

    def tapped(self, taps: Taps) -> tuple[Tensor, Tensor]:
        """(chunk [R], read [R]): the chunk that each tap lies in, and how many of its tokens were read, 1 .. C."""

        def build() -> tuple[Tensor, Tensor]:
            document, count = taps.numbers()
            step = (count - 1) // self.size
            read = count - step * self.size
            if self._even:
                return step * self.layout.documents + document, read
            return self._offset[step] + self._rank[document], read

        return taps.once(("chunks", self.size), build)


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, chunks: Chunks) -> Tensor:
        ctx.chunks = chunks
        return chunks._cut(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.chunks._join(grads[0]), None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, chunks: Chunks) -> Tensor:
        ctx.chunks = chunks
        return chunks._join(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.chunks._cut(grads[0]), None
