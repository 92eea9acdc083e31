"""Which places of a document rollouts may start from, before the model reads anything (docs/method.md, Positions).

Shape legend: L tokens of a document · c chunks of a document · k tokens of a rollout. t counts the tokens read.

Most rules admit every t and cut the document into c chunks of equal length. `marked` and `recall` admit single places,
and cut their list into c parts of equal length, so that c of them are spread evenly over the list. All this follows
from lengths, marks and tokens, so that an optimizer step's denominators are known before the model reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from refine.objective.documents import Document, Documents
from refine.settings.objective import ObjectiveSettings

Span = tuple[int, int, int]


@dataclass(frozen=True)
class Candidates:
    """Where one document's positions are drawn from.

    spans: (j, first, last) of each chunk j with admissible t, ends included. only: the admissible t; None: all of the
    spans.
    """

    spans: tuple[Span, ...]
    only: tuple[int, ...] | None = None


def candidates(documents: Documents, tokens: Tensor, settings: ObjectiveSettings) -> list[Candidates]:
    """The candidates of each document of tokens [B, T]. Only `recall` looks at the tokens."""
    rows = tokens.cpu().numpy() if settings.selection == "recall" else None
    found = []
    for document in documents.all:
        own = None if rows is None else rows[document.row, document.start : document.start + document.length]
        found.append(_of_document(document, own, settings))
    return found


def _of_document(document: Document, tokens: np.ndarray | None, settings: ObjectiveSettings) -> Candidates:
    if settings.selection not in ("marked", "recall"):
        return Candidates(tuple(spans(document.length, settings)))
    places = document.marks if tokens is None else repeats(tokens, settings.rollout_length)
    last = document.length - settings.rollout_length
    admissible = tuple(t for t in places if t <= last)
    if admissible:
        return Candidates(tuple(_parts(admissible, settings.positions)), admissible)
    return Candidates(() if settings.fallback == "none" else tuple(spans(document.length, settings)))


def spans(length: int, settings: ObjectiveSettings) -> list[Span]:
    """(j, first, last) of each chunk j with admissible t, in a document of `length` tokens: 1-based, ends included.

    Every t from min_prefix to length - k is admissible; the rules `marked` and `recall` use this as their fallback.
    """
    c, found = settings.positions, []
    for j in range(c):
        first = max(j * length // c + 1, settings.min_prefix)
        last = min((j + 1) * length // c, length - settings.rollout_length)
        if first <= last:
            found.append((j, first, last))
    return found


def repeats(tokens: Sequence[int] | np.ndarray, length: int) -> tuple[int, ...]:
    """The t at which the next `length` tokens [L] already occurred, in full, among the first t."""
    array = np.ascontiguousarray(tokens, dtype=np.int64)
    if len(array) < 2 * length:
        return ()
    windows = np.lib.stride_tricks.sliding_window_view(array, length)
    as_one = np.ascontiguousarray(windows).view(np.dtype((np.void, windows.itemsize * length)))[:, 0]
    _, first, which = np.unique(as_one, return_index=True, return_inverse=True)
    place = np.arange(len(as_one))
    return tuple(place[first[which] + length <= place].tolist())


def _parts(places: Sequence[int], count: int) -> list[Span]:
    """(j, first, last) of each of `count` parts of `places`, as equal in length as possible, without empty ones."""
    bounds = [j * len(places) // count for j in range(count + 1)]
    parts = enumerate(pairwise(bounds))
    return [(j, places[low], places[high - 1]) for j, (low, high) in parts if low < high]
