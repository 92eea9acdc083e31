"""Documents of unequal length, laid end to end: the one form in which every layer sees its tokens.

Shape legend: N tokens of all documents together · G documents · R tapped rows.

Linear layers work on the N real tokens, whatever the batch looked like; an op that looks back (convolution, delta
rule, attention window) never looks over a document's start. Padding is gone before the first layer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import accumulate
from typing import Any, TypeVar

import torch

X = TypeVar("X")


class Layout:
    """G documents of `lengths` tokens each (all >= 1); document g holds tokens starts[g] .. starts[g] + lengths[g] - 1.

    `positions[g]` counts the tokens that document g's memory had read before (0 for a fresh one). Everything here is
    Python integers, so that a layer can plan its chunks without waiting for a device; `once` keeps tensors that
    several layers derive from them.
    """

    def __init__(self, lengths: Sequence[int], positions: Sequence[int] | None = None, device: Any = "cpu") -> None:
        self.lengths = tuple(int(n) for n in lengths)
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"a layout needs documents of at least one token, not lengths {self.lengths}")
        self.positions = (0,) * len(self.lengths) if positions is None else tuple(int(p) for p in positions)
        if len(self.positions) != len(self.lengths):
            raise ValueError(f"{len(self.lengths)} documents, but {len(self.positions)} positions")
        self.starts = (0, *accumulate(self.lengths))[:-1]
        self.tokens = sum(self.lengths)
        self.documents = len(self.lengths)
        self.longest = max(self.lengths)
        self.device = torch.device(device)
        self._kept: dict[Hashable, Any] = {}

    @property
    def width(self) -> int | None:
        """The length of every document if all are equal (then [N, .] can be viewed as [G, width, .]); else None."""
        return self.longest if self.longest * self.documents == self.tokens else None

    @property
    def decodes(self) -> bool:
        """Whether every document has one token and no gradient is wanted: a step of decoding, which has paths of its
        own, since the operations around so little work would cost more than the work."""
        return self.longest == 1 and not torch.is_grad_enabled()

    def once(self, key: Hashable, build: Callable[[], X]) -> X:
        """What `build` returns, built by the first layer that asks for `key` and kept for the others."""
        if key not in self._kept:
            self._kept[key] = build()
        return self._kept[key]

    def tensor(self, values: Sequence[int]) -> torch.Tensor:
        """`values` as int64 on the layout's device."""
        return torch.tensor(list(values), dtype=torch.int64, device=self.device)

    def document_of_token(self) -> torch.Tensor:
        """[N] int64: the document that each token belongs to."""

        def build() -> torch.Tensor:
            return torch.repeat_interleave(torch.arange(self.documents, device=self.device), self.tensor(self.lengths))

        return self.once("document_of_token", build)

    def offset_of_token(self) -> torch.Tensor:
        """[N] int64: how many tokens of the same document stand before each token (the memory's own not counted)."""

        def build() -> torch.Tensor:
            starts = self.tensor(self.starts)[self.document_of_token()]
            return torch.arange(self.tokens, device=self.device) - starts

        return self.once("offset_of_token", build)

    def position_of_token(self) -> torch.Tensor:
        """[N] int64: the position of each token, counted from the first token that its memory ever read (0-based)."""

        def build() -> torch.Tensor:
            return self.offset_of_token() + self.tensor(self.positions)[self.document_of_token()]

        return self.once("position_of_token", build)


class Taps:
    """R points of a read whose memory is wanted: after `counts[r]` tokens (1 .. length) of document `documents[r]`."""

    def __init__(self, documents: Sequence[int], counts: Sequence[int], device: Any = "cpu") -> None:
        self.documents = tuple(int(g) for g in documents)
        self.counts = tuple(int(n) for n in counts)
        self.rows = len(self.documents)
        self.device = torch.device(device)
        self._kept: dict[Hashable, Any] = {}

    @classmethod
    def ends(cls, layout: Layout, documents: Sequence[int] | None = None) -> Taps:
        """The ends of `documents` (default: all)."""
        chosen = range(layout.documents) if documents is None else documents
        return cls(list(chosen), [layout.lengths[g] for g in chosen], layout.device)

    def once(self, key: Hashable, build: Callable[[], X]) -> X:
        """What `build` returns, built by the first layer that asks for `key` and kept for the others."""
        if key not in self._kept:
            self._kept[key] = build()
        return self._kept[key]

    def tensor(self, values: Sequence[int]) -> torch.Tensor:
        """`values` as int64 on the taps' device."""
        return torch.tensor(list(values), dtype=torch.int64, device=self.device)

    def of_documents(self, x: torch.Tensor) -> torch.Tensor:
        """x [G, ...], a row for each document -> [R, ...], the row of each tap's document."""
        if self.documents == tuple(range(x.shape[0])):
            return x
        return x.index_select(0, self.once("documents", lambda: self.tensor(self.documents)))
