"""From a batch of rows (padded, packed, after a memory) to documents laid end to end, and back.

Shape legend: B rows · T tokens of a row, padding included · N real tokens · G documents · c taps of a row.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from refine.errors import ModelError
from refine.models.memory import Memory
from refine.ops.layout import Layout, Taps


class Batch:
    """Which of tokens [B, T] are real, which document each belongs to, and which memory each document starts from.

    `lengths[b]`: the lengths of the documents packed in row b, one after the other from its first real token. The first
    continues row b of a memory, the others start fresh. A row without real tokens keeps its memory.
    `index` [N]: indices of the real tokens in the flattened batch, or None if all tokens are real.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        lengths: Sequence[Sequence[int]],
        index: Tensor | None,
        memory: Memory | None,
        device: torch.device,
    ) -> None:
        self.rows, self.width = shape
        self.index = index
        self.lengths = [list(row) for row in lengths]
        self.ends_in_row = [[end for _, end in _with_ends(row)] for row in self.lengths]
        self.first = [0, *accumulate(len(row) for row in self.lengths)][:-1]  # each row's first document
        self.origin = [b if i == 0 else -1 for b, row in enumerate(self.lengths) for i in range(len(row))]
        before = memory.positions.tolist() if memory is not None else [0] * self.rows
        positions = [before[b] if b >= 0 else 0 for b in self.origin]
        flat = [n for row in self.lengths for n in row]
        places = [b * self.width + end - n for b, row in enumerate(self.lengths) for n, end in _with_ends(row)]
        self.layout = Layout(flat, positions, device, places)
        last = [first + len(row) - 1 for first, row in zip(self.first, self.lengths, strict=True) if row]
        self.ends = Taps.ends(self.layout, last)  # the last document of each row that has any

    @classmethod
    def packed(cls, tokens: Tensor, lengths: Sequence[Sequence[int]] | None, memory: Memory | None) -> Batch:
        """Documents of `lengths` tokens (default: one document a row); the rest of each row is padding, on its right.

        Raises ModelError: no tokens, or lengths that do not fit.
        """
        rows, width = tokens.shape
        if rows == 0 or width == 0:
            raise ModelError(
                f"nothing to read: tokens has shape {rows} x {width}; expected at least one token in each row"
            )
        if lengths is None:
            return cls((rows, width), [[width]] * rows, None, memory, tokens.device)
        if len(lengths) != rows:
            raise ModelError(f"lengths has {len(lengths)} rows, but tokens has {rows}")
        for b, row in enumerate(lengths):
            if not isinstance(row, Sequence):
                raise ModelError(f"lengths[{b}] is {row!r}: expected a list of the documents packed in row {b}")
            if not row or min(row) < 1 or sum(row) > width:
                raise ModelError(
                    f"lengths[{b}] is {list(row)}: expected documents of at least one token, together at most {width}"
                )
        batch = cls((rows, width), lengths, None, memory, tokens.device)
        if any(sum(row) < width for row in lengths):
            batch.index = batch.layout.place_of_token()
        return batch

    @classmethod
    def masked(cls, tokens: Tensor, mask: Tensor, memory: Memory | None) -> Batch:
        """One document a row: the tokens where mask [B, T] is not 0.

        Raises ModelError: a mask of another shape, or one without any real token.
        """
        if mask.shape != tokens.shape:
            raise ModelError(
                f"attention_mask has shape {tuple(mask.shape)}; expected that of the tokens, {tuple(tokens.shape)}"
            )
        real = mask.cpu() != 0
        counts = real.sum(1).tolist()
        if not any(counts):
            raise ModelError("attention_mask leaves no token to read: every position of every row is padding")
        lengths = [[n] if n else [] for n in counts]
        return cls((tokens.shape[0], tokens.shape[1]), lengths, _index(real, tokens.device), memory, tokens.device)

    def flat(self, values: Tensor) -> Tensor:
        """values [B, T, ...] -> those of the real tokens [N, ...]."""
        flat = values.reshape(self.rows * self.width, *values.shape[2:])
        return flat if self.index is None else flat.index_select(0, self.index)

    def square(self, values: Tensor) -> Tensor:
        """values [N, ...] of the real tokens -> [B, T, ...], 0 at padding."""
        if self.index is not None:
            padded = values.new_zeros(self.rows * self.width, *values.shape[1:])
            values = padded.index_copy(0, self.index, values)
        return values.reshape(self.rows, self.width, *values.shape[1:])

    def taps(self, positions: Tensor) -> Taps:
        """positions [B, c] int64: tokens of the row read before each tap -> Taps; row b*c + i is positions[b, i].

        Raises ModelError: wrong shape, no tap, or a position that is not 1 .. number of real tokens of its row.
        """
        if positions.ndim != 2 or positions.shape[0] != self.rows or positions.dtype != torch.int64:
            raise ModelError(
                f"taps must be int64 of shape [{self.rows}, c], not {positions.dtype} of {tuple(positions.shape)}"
            )
        if positions.shape[1] == 0:
            raise ModelError("taps has no columns: expected at least one tap a row")
        documents, counts = [], []
        for b, row in enumerate(positions.tolist()):
            ends = self.ends_in_row[b]
            for i, t in enumerate(row):
                if not 1 <= t <= (ends[-1] if ends else 0):
                    last = ends[-1] if ends else 0
                    raise ModelError(f"tap {t} at [{b}, {i}] is out of range: expected 1 .. {last}, row {b}'s tokens")
                inside = bisect_left(ends, t)
                documents.append(self.first[b] + inside)
                counts.append(t - (ends[inside - 1] if inside else 0))
        return Taps(documents, counts, self.layout.device)

    def tap_positions(self, taps: Taps) -> Tensor:
        """[R] int64: how many tokens the memory of each tapped row has read, earlier reads included."""
        return torch.tensor(
            [self.layout.positions[g] + n for g, n in zip(taps.documents, taps.counts, strict=True)], dtype=torch.int64
        )


def _with_ends(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Each length with the sum of it and those before it."""
    return list(zip(lengths, accumulate(lengths), strict=True))


def _index(real: Tensor, device: torch.device) -> Tensor | None:
    return None if bool(real.all()) else real.reshape(-1).nonzero()[:, 0].to(device)
