"""Documents of tokens cut into pieces, and pieces packed into rows; their marks go with them.

A mark is a place where a text asks for what it has told, as the number of tokens before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from refine.data.token_sequences import token_array
from refine.errors import DataError

RawRow = tuple[Any, Sequence[int] | None, tuple[str, ...], Any]  # tokens, lengths, document names, marks


def checked_marks(marks: Any, lengths: Sequence[int], where: str) -> tuple[int, ...]:
    """`marks` of a row with documents of these lengths, in order.

    Raises DataError: they are no numbers, or one has no token of its document before it, or none after it."""
    if marks is None or len(marks) == 0:
        return ()
    array = token_array(marks, f"{where}: marks")
    ends = np.cumsum(lengths)
    place = np.searchsorted(ends, array, side="right")
    start = np.concatenate([[0], ends])[np.minimum(place, len(ends) - 1)]
    outside = array[(place == len(ends)) | (array <= start)]
    if outside.size:
        raise DataError(
            f"{where}: mark {outside[0]} lies outside its documents of {list(lengths)} tokens: expected a number of "
            "the row's tokens, with at least one token of the document before the mark and one after it"
        )
    return tuple(np.unique(array).tolist())


class Piece(NamedTuple):
    """At most max_length tokens of one document, its name, and its marks, counted in tokens of the piece."""

    tokens: np.ndarray
    name: str
    marks: list[int]


def cut_into_pieces(documents: Iterable[RawRow], length: int) -> Iterator[Piece]:
    """Each document cut into pieces of at most `length` tokens. A packed row yields each of its documents. A mark at
    the beginning of a piece is left out: nothing was told before it there."""
    for tokens, lengths, (name,), marks in documents:
        array = token_array(tokens, name)
        spans, start = lengths or [len(array)], 0
        places = checked_marks(marks, spans, name)
        for span in spans:
            for offset in range(start, start + span, length):
                end = min(offset + length, start + span)
                own = [place - offset for place in places if offset < place < end]
                yield Piece(array[offset:end], f"{name}+{offset}" if offset else name, own)
            start += span


def packed(pieces: Iterable[Piece], length: int) -> Iterator[RawRow]:
    """Rows of at most `length` tokens, filled with uncut pieces in order."""
    held: list[Piece] = []
    for piece in pieces:
        if held and sum(len(one.tokens) for one in held) + len(piece.tokens) > length:
            yield _joined(held)
            held = []
        held.append(piece)
    if held:
        yield _joined(held)


def alone(piece: Piece) -> RawRow:
    """A row of one piece."""
    return piece.tokens, None, (piece.name,), piece.marks


def _joined(held: Sequence[Piece]) -> RawRow:
    lengths = [len(piece.tokens) for piece in held]
    starts = (0, *accumulate(lengths))
    marks = [start + mark for piece, start in zip(held, starts, strict=False) for mark in piece.marks]
    return np.concatenate([piece.tokens for piece in held]), lengths, tuple(piece.name for piece in held), marks
