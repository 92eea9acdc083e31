"""Documents of unequal length, laid end to end: the one form in which every layer sees its tokens.

Shape legend: N tokens of all documents together · G documents · R tapped rows.

Linear layers work on the N real tokens, whatever the batch looked like; an op that looks back (convolution, delta
rule, attention window) never looks over a document's start. Padding is gone before the first layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from itertools import accumulate
from typing import Any, TypeVar

import torch

X = TypeVar("X")
SMALL = 2048  # numbers that are worth remembering: the same reads come again, rollout after rollout


def on_device(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """`values` as int64 on `device`. The same values give the same tensor, which nobody may change: all layers of a
    model ask for the same few, and each transfer to a device costs the host more than a small product."""
    return _uploaded(tuple(values), device)


@functools.lru_cache(maxsize=256)
def _uploaded(values: tuple[int, ...], device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # one made inside could not be used in training later
        return torch.tensor(values, dtype=torch.int64, device=device)


def moved_together(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """int64 tensors on the host -> the same on `device`, in one transfer; small ones as in `on_device`."""
    if device.type == "cpu":
        return list(tensors)
    together = torch.cat([x.flatten() for x in tensors])
    small = together.numel() <= SMALL
    together = on_device(together.tolist(), device) if small else together.to(device)
    parts = together.split([x.numel() for x in tensors])
    return [part.view(x.shape) for part, x in zip(parts, tensors, strict=True)]


class Layout:
    """G documents of `lengths` tokens each (all >= 1); document g holds tokens starts[g] .. starts[g] + lengths[g] - 1.

    `positions[g]` counts the tokens that document g's memory had read before (0 for a fresh one). `places[g]`: the
    entry of document g's first token in the flattened batch that it comes from (default: starts). Everything here is
    Python integers, so that a layer can plan its chunks without waiting for a device; `once` keeps tensors that
    several layers derive from them. Maps of all tokens are computed on the device, from a few numbers a document that
    go there in one transfer.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        positions: Sequence[int] | None = None,
        device: Any = "cpu",
        places: Sequence[int] | None = None,
    ) -> None:
        self.lengths = tuple(int(n) for n in lengths)
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"a layout needs documents of at least one token, not lengths {self.lengths}")
        self.positions = (0,) * len(self.lengths) if positions is None else tuple(int(p) for p in positions)
        if len(self.positions) != len(self.lengths):
            raise ValueError(f"{len(self.lengths)} documents, but {len(self.positions)} positions")
        self.starts = (0, *accumulate(self.lengths))[:-1]
        self.places = self.starts if places is None else tuple(places)
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

    def times(self, steps: int) -> Layout:
        """The layout of a recurrence that takes so many `steps` for each token."""
        if steps == 1:
            return self
        lengths, positions = ([n * steps for n in counts] for counts in (self.lengths, self.positions))
        return self.once(("times", steps), lambda: Layout(lengths, positions, self.device))

    def tensor(self, values: Sequence[int]) -> torch.Tensor:
        """`values` as int64 on the layout's device, see `on_device`."""
        return on_device(values, self.device)

    def document_of_token(self) -> torch.Tensor:
        """[N] int64: the document that each token belongs to."""

        def build() -> torch.Tensor:
            document = torch.arange(self.documents, device=self.device)
            if self.width is not None:
                return document.repeat_interleave(self.longest)
            return torch.repeat_interleave(document, self.numbers()[0], output_size=self.tokens)

        return self.once("document of token", build)

    def offset_of_token(self) -> torch.Tensor:
        """[N] int64: how many tokens of the same document stand before each token (the memory's own not counted)."""

        def build() -> torch.Tensor:
            if self.width is not None:
                return self._steps().repeat(self.documents)
            return torch.arange(self.tokens, device=self.device) - self.numbers()[1][self.document_of_token()]

        return self.once("offset of token", build)

    def position_of_token(self) -> torch.Tensor:
        """[N] int64: the position of each token, counted from the first token that its memory ever read (0-based)."""

        least = min(self.positions)

        def build() -> torch.Tensor:
            if max(self.positions) == least:
                return self.offset_of_token() + least
            if self.width is None:
                return self.offset_of_token() + self.numbers()[2][self.document_of_token()]
            # relative to the least, rollouts have the same positions at each of their tokens
            relative = self.tensor([p - least for p in self.positions])
            return (relative[:, None] + (self._steps() + least)).flatten()

        return self.once("position of token", build)

    def place_of_token(self) -> torch.Tensor:
        """[N] int64: the entry of each token in the flattened batch."""

        def build() -> torch.Tensor:
            return self.offset_of_token() + self.numbers()[3][self.document_of_token()]

        return self.once("place of token", build)

    def start_of(self, document: torch.Tensor) -> torch.Tensor:
        """The first token of each `document` [.] int64 on the device."""
        return document * self.longest if self.width is not None else self.numbers()[1][document]

    def numbers(self) -> torch.Tensor:
        """[4, G] int64 on the device: length, start, position and place of each document, in one transfer."""
        rows = (self.lengths, self.starts, self.positions, self.places)
        return self.once("numbers", lambda: self.tensor([n for row in rows for n in row]).view(4, self.documents))

    def _steps(self) -> torch.Tensor:
        return torch.arange(self.longest, device=self.device)


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

    def times(self, steps: int) -> Taps:
        """The same points in the layout `layout.times(steps)`."""
        if steps == 1:
            return self
        counts = [n * steps for n in self.counts]
        return self.once(("times", steps), lambda: Taps(self.documents, counts, self.device))

    def tensor(self, values: Sequence[int]) -> torch.Tensor:
        """`values` as int64 on the taps' device, see `on_device`."""
        return on_device(values, self.device)

    def numbers(self) -> torch.Tensor:
        """[2, R] int64 on the device: document and count of each tap, in one transfer."""
        return self.once("numbers", lambda: self.tensor([*self.documents, *self.counts]).view(2, self.rows))


class Ends:
    """What a read of one token a document leaves at their ends, x [G, ...]: there is no other place to tap."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def at(self, taps: Taps) -> torch.Tensor:
        """[R, ...]: the row of each tap's document."""
        if taps.documents == tuple(range(self.x.shape[0])):
            return self.x
        return self.x.index_select(0, taps.numbers()[0])
