"""Documents cut into chunks that are processed all at once.

Shape legend: N tokens · G documents · X chunks of all documents · C tokens of a chunk · H heads.

Chunks are in the order in which a loop over time needs them: the first chunk of every document, then the second of
every document that has one, and so on, the longest documents first. The chunks of step j are then one slice, and no
step works on a document that has ended. A document's last chunk is filled up with padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from refine.ops.layout import Layout, Taps, moved_together
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
        self.order = None if order == list(range(layout.documents)) else layout.tensor(order)
        self._even = layout.width is not None and layout.width % self.size == 0  # then cutting is a change of view
        if not self._even:
            self._token, self._place = self._maps()

    @staticmethod
    def of(layout: Layout, size: int) -> Chunks:
        """The chunks of `layout`, made once for all layers."""
        return layout.once(("chunks", size), lambda: Chunks(layout, size))

    def _maps(self) -> tuple[Tensor, Tensor]:
        """token [X*C]: the token at each place (a padding place repeats its chunk's first); place [N]: the inverse."""
        document, offset, _ = self.layout.on_host()
        step = offset // self.size
        chunk = torch.tensor(self.offset)[step] + torch.tensor(self.rank)[document]
        place = chunk * self.size + offset % self.size
        token = place.new_full((self.total * self.size,), -1)
        token[place] = torch.arange(self.layout.tokens)
        padding = (token < 0).nonzero()[:, 0]
        first_of_chunk = token.view(self.total, self.size)[:, :1].expand(-1, self.size).reshape(-1)
        maps = [torch.where(token < 0, first_of_chunk, token), place, padding]
        token, place, self._padding = moved_together(maps, self.layout.device)
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
            steps = [(n - 1) // self.size for n in taps.counts]
            chunk = [self.offset[j] + self.rank[g] for j, g in zip(steps, taps.documents, strict=True)]
            read = [n - j * self.size for j, n in zip(steps, taps.counts, strict=True)]
            both = taps.tensor([*chunk, *read])
            return both[: taps.rows], both[taps.rows :]

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
