"""The documents packed in a batch, and where in them rollouts start.

Shape legend: B rows of the batch · T tokens of a row · G documents · L tokens of the longest document
· C columns of positions (c chunks times the most documents of a row) · R rollout starts, one for each valid position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from refine.errors import SettingError
from refine.ops.layout import moved_together


@dataclass(frozen=True)
class Document:
    """Tokens start .. start + length - 1 of row `row`; the `number`-th document of that row.

    marks: how many tokens of the document stand before each place where it asks for what it has told.
    """

    row: int
    number: int
    start: int
    length: int
    marks: tuple[int, ...] = ()


class Documents:
    """The documents of tokens [B, T], as `lengths` (see `model.read`) packs them. With None each row is one document.

    marks: of each row, counted in tokens of the row. Lengths that do not fit are not refused here: `model.read` refuses
    them. Raises SettingError: marks for another number of rows, or a mark without a token of its document on each side.
    """

    def __init__(
        self,
        shape: Sequence[int],
        lengths: Sequence[Sequence[int]] | None,
        marks: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.rows, self.width = shape
        self.lengths = [[self.width]] * self.rows if lengths is None else [list(row) for row in lengths]
        if marks is not None and len(marks) != self.rows:
            raise SettingError(f"marks of {len(marks)} rows, but the batch has {self.rows}: give a list for each row")
        marked = [sorted(set(row)) for row in marks or [[]] * self.rows]
        self.all = [
            Document(b, d, start, length, tuple(m - start for m in marked[b] if start < m < start + length))
            for b, row in enumerate(self.lengths)
            for d, (start, length) in enumerate(zip((0, *accumulate(row)), row, strict=False))
        ]
        _refuse_marks_outside(self.all, marked)
        self.longest = max((document.length for document in self.all), default=0)
        self._kept: dict[torch.device, Tensor] = {}
        self.rows_are_documents = all(row == [self.width] for row in self.lengths)

    @property
    def predicted(self) -> int:
        """How many tokens have a token of the same document before them: the next-token loss counts these."""
        return sum(document.length - 1 for document in self.all)

    def grid(self, values: Tensor) -> Tensor:
        """values [B, T] -> [G, L], a document a row, zero after its end."""
        if self.rows_are_documents:
            return values
        grid = values.new_zeros(len(self.all), self.longest)
        for g, document in enumerate(self.all):
            grid[g, : document.length] = values[document.row, document.start : document.start + document.length]
        return grid

    def real(self, device: torch.device) -> Tensor:
        """[B, T] bool: tokens, not padding."""
        return self._masks(device)[0]

    def has_next(self, device: torch.device) -> Tensor:
        """[B, T] bool: tokens that another token of the same document follows."""
        return self._masks(device)[1]

    def sent(self, tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        """int64 `tensors` on the host -> the same on `device`, in one transfer with what the masks are made of."""
        if device in self._kept or self.rows_are_documents:
            return moved_together(tensors, device) if tensors else []
        held = torch.tensor([sum(row) for row in self.lengths])
        ends = torch.tensor(
            [(document.row, document.start + document.length - 1) for document in self.all], dtype=torch.int64
        )
        held, ends, *there = moved_together([held, ends.reshape(-1, 2), *tensors], device)
        real = torch.arange(self.width, device=device) < held[:, None]
        no = torch.zeros((), dtype=torch.bool, device=device)
        self._kept[device] = torch.stack([real, real.index_put(tuple(ends.unbind(1)), no)])
        return there

    def _masks(self, device: torch.device) -> Tensor:
        """`real` and `has_next` [2, B, T], made once."""
        if device not in self._kept and self.rows_are_documents:
            real = torch.ones(self.rows, self.width, dtype=torch.bool, device=device)
            followed = (torch.arange(self.width, device=device) < self.width - 1).expand(self.rows, -1)
            self._kept[device] = torch.stack([real, followed])
        elif device not in self._kept:
            self.sent([], device)
        return self._kept[device]


@dataclass(frozen=True)
class RolloutStarts:
    """R starts of rollouts, as CPU tensors: the reads are planned on the CPU. `on` gives them elsewhere.

    `row`, `column` [R]: their entry in positions [B, C]; `document` [R]: index into Documents.all; `position` [R]:
    tokens of the row read before the rollout. `elsewhere`: the same starts on the devices that know them.
    """

    shape: tuple[int, int]
    row: Tensor
    column: Tensor
    document: Tensor
    position: Tensor
    elsewhere: dict[torch.device, RolloutStarts] = field(default_factory=dict, compare=False, repr=False, kw_only=True)

    @staticmethod
    def none(rows: int) -> RolloutStarts:
        """No starts in `rows` rows, and no columns."""
        return RolloutStarts((rows, 0), *torch.zeros(4, 0, dtype=torch.int64))

    @staticmethod
    def at(positions: Tensor, documents: Documents, rollout_length: int) -> RolloutStarts:
        """The starts at positions [B, C] int64, -1 for none.

        Raises SettingError: a position that leaves fewer than `rollout_length` tokens of its document to compare with.
        """
        if positions.ndim != 2 or positions.shape[0] != documents.rows or positions.dtype != torch.int64:
            raise SettingError(
                f"positions must be int64 of shape [{documents.rows}, c], "
                f"not {positions.dtype} of {tuple(positions.shape)}"
            )
        found: list[tuple[int, int, int, int]] = []
        for b, row in enumerate(positions.tolist()):
            for i, t in enumerate(row):
                if t == -1:
                    continue
                g = _document_at(documents, b, t, rollout_length)
                if g is None:
                    raise SettingError(
                        f"positions[{b}, {i}] is {t}: expected -1, or 1 or more tokens of a document of row {b} "
                        f"with at least {rollout_length} more after them"
                    )
                found.append((b, i, g, t))
        columns = torch.tensor(found, dtype=torch.int64).reshape(-1, 4).unbind(1)
        return RolloutStarts((documents.rows, positions.shape[1]), *columns)

    def __len__(self) -> int:
        return self.row.shape[0]

    def on(self, device: torch.device) -> RolloutStarts:
        """The same on `device`, in one transfer for all uses."""
        if device == self.row.device:
            return self
        if device not in self.elsewhere:
            columns = torch.stack([self.row, self.column, self.document, self.position]).to(device)
            self.elsewhere[device] = RolloutStarts(self.shape, *columns.unbind())
        return self.elsewhere[device]

    def positions(self) -> Tensor:
        """[B, C] int64, -1 where no rollout starts."""
        return self.scatter(self.position, -1)

    def scatter(self, values: Tensor, empty: float = 0) -> Tensor:
        """values [R, ...] -> [B, C, ...], `empty` where no rollout starts."""
        full = values.new_full((*self.shape, *values.shape[1:]), empty)
        there = self.on(values.device)
        full[there.row, there.column] = values
        return full

    def gather(self, values: Tensor) -> Tensor:
        """values [B, C, ...] -> [R, ...]."""
        there = self.on(values.device)
        return values[there.row, there.column]


def _refuse_marks_outside(documents: Sequence[Document], marks: Sequence[Sequence[int]]) -> None:
    inside = {(document.row, document.start + mark) for document in documents for mark in document.marks}
    for row, found in enumerate(marks):
        for mark in found:
            if (row, mark) not in inside:
                raise SettingError(
                    f"mark {mark} of row {row} lies outside its documents: expected a number of the row's tokens, with "
                    "at least one token of the document before the mark and one after it"
                )


def _document_at(documents: Documents, row: int, position: int, tokens_after: int) -> int | None:
    for g, document in enumerate(documents.all):
        if document.row == row and 1 <= position - document.start <= document.length - tokens_after:
            return g
    return None
