"""Next-token loss and accuracy on held-out documents, also by position in the context.

Shape legend: B sequences of a pass · T tokens · N predicted tokens of a pass · D hidden size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from refine.data.token_sequences import token_array
from refine.errors import DataError
from refine.evaluation.decoding import passes
from refine.evaluation.intervals import Interval, ratio
from refine.evaluation.record import NextTokenScore, PositionScore
from refine.metric_names import MARKED_TOKENS
from refine.ops.token_statistics import token_statistics

if TYPE_CHECKING:
    from refine.models import FastWeightLanguageModel

FIRST_BIN = 16  # last position of the first bin; each further bin ends at twice the end of the one before


def evaluate(model: FastWeightLanguageModel, sequences: Any, batch_size: int = 8) -> NextTokenScore:
    """Score every sequence once, at most `batch_size` in a pass; that changes no score.

    sequences: lists or tensors of token ids, or a data set with column `tokens`; lengths may differ. A row that holds
    several documents (column `lengths`) is scored document by document. With a column `marks` the score has the loss
    of the tokens after each mark. The model keeps its mode (train or eval).
    Raises DataError if there are no sequences or one has fewer than two tokens; ModelError for ids outside the
    vocabulary.
    """
    rows = token_rows(sequences)
    marks = marks_of(sequences, len(rows))
    longest = max(len(row) for row in rows)
    losses, hits = np.zeros((len(rows), longest)), np.zeros((len(rows), longest))  # column t: token t + 1
    training = model.training
    model.eval()
    try:
        for numbers in passes([len(row) for row in rows], batch_size, model.device.type):
            for number, lost, hit in _score(model, [rows[n] for n in numbers], numbers):
                losses[number, 1 : 1 + len(lost)] = lost
                hits[number, 1 : 1 + len(hit)] = hit
    finally:
        model.train(training)
    predicted = np.array([len(row) - 1 for row in rows])
    loss, accuracy = ratio(losses.sum(1), predicted), ratio(hits.sum(1), predicted)
    return NextTokenScore(
        loss.value,
        accuracy.value,
        int(predicted.sum()),
        len(rows),
        tuple(_by_position(losses, hits, predicted)),
        loss.interval,
        accuracy.interval,
        tuple((losses.sum(1) / predicted).tolist()),
        tuple(predicted.tolist()),
        *_at_marks(losses, [len(row) for row in rows], marks),
    )


def _at_marks(
    losses: np.ndarray, lengths: Sequence[int], marks: Sequence[Sequence[int]]
) -> tuple[float | None, Interval, tuple[float, ...]]:
    """The mean loss of the MARKED_TOKENS tokens after each mark (fewer at the end), its interval, and the mean of each
    sequence that has marks; (None, None, ()) without any."""
    sums, counts = [], []
    for number, (length, own) in enumerate(zip(lengths, marks, strict=True)):
        parts = [losses[number, mark : min(mark + MARKED_TOKENS, length)] for mark in own]
        if sum(map(len, parts)):
            sums.append(float(sum(part.sum() for part in parts)))
            counts.append(sum(map(len, parts)))
    if not sums:
        return None, None, ()
    found = ratio(sums, counts)
    return found.value, found.interval, tuple(lost / count for lost, count in zip(sums, counts, strict=True))


@torch.no_grad()
def _score(
    model: FastWeightLanguageModel, rows: Sequence[Tensor], numbers: Sequence[int]
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(index, losses, hits) of each row, for its tokens from the second on."""
    lengths = [len(row) for row in rows]
    tokens = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(model.device)  # [B, T]
    hidden = model.read(tokens, lengths=[[length] for length in lengths]).hidden
    before = torch.cat([hidden[b, : length - 1] for b, length in enumerate(lengths)])  # [N, D]
    targets = torch.cat([tokens[b, 1:length] for b, length in enumerate(lengths)])
    found = token_statistics(before, model.get_output_embeddings().weight, targets)
    counts = [length - 1 for length in lengths]
    losses = found.cross_entropy.cpu().double().split(counts)
    hits = found.correct.cpu().double().split(counts)
    for number, loss, hit in zip(numbers, losses, hits, strict=True):
        yield number, loss.numpy(), hit.numpy()


def token_rows(sequences: Any) -> list[Tensor]:
    """Each sequence as int64 [T]; each document of a row that holds several. Raises DataError if there is none, or if
    one has fewer than two tokens."""
    column = sequences["tokens"] if "tokens" in getattr(sequences, "column_names", ()) else sequences
    rows = [torch.from_numpy(token_array(row, f"sequence {number}")) for number, row in enumerate(column)]
    if (lengths := _column(sequences, "lengths")) is not None:
        for number, (row, own) in enumerate(zip(rows, lengths, strict=True)):
            if sum(own) != len(row):
                raise DataError(f"sequence {number} has {len(row)} tokens, but its lengths add up to {sum(own)}")
        rows = [piece for row, own in zip(rows, lengths, strict=True) for piece in row.split(own)]
    if not rows:
        raise DataError("no sequences to evaluate next-token prediction on")
    for number, row in enumerate(rows):
        if row.ndim != 1 or len(row) < 2:
            raise DataError(f"sequence {number} has {row.numel()} tokens; next-token prediction needs at least 2")
    return rows


def marks_of(sequences: Any, rows: int) -> list[list[int]]:
    """The marks of each of the `rows` of `token_rows`: the number of its tokens before each; empty lists without a
    column `marks`."""
    marks = _column(sequences, "marks")
    if marks is None:
        return [[]] * rows
    lengths = _column(sequences, "lengths") or [[len(row)] for row in sequences["tokens"]]
    return [
        [mark - start for mark in own if start < mark < start + length]
        for own, pieces in zip(marks, lengths, strict=True)
        for start, length in zip(accumulate(pieces, initial=0), pieces, strict=False)
    ]


def _column(sequences: Any, name: str) -> list[list[int]] | None:
    """A column of a data set; None where it has no such column."""
    return [list(row) for row in sequences[name]] if name in getattr(sequences, "column_names", ()) else None


def _by_position(losses: np.ndarray, hits: np.ndarray, predicted: np.ndarray) -> Iterator[PositionScore]:
    """One score for each bin of positions. Later bins hold fewer sequences if lengths differ."""
    first, last, longest = 2, FIRST_BIN, losses.shape[1]
    while first <= longest:
        end = min(last, longest)
        counts = np.clip(predicted + 1 - (first - 1), 0, end - first + 1)
        reaching, inside = counts > 0, slice(first - 1, end)
        lost, counts, count = losses[reaching, inside].sum(1), counts[reaching], int(counts.sum())
        loss = ratio(lost, counts)
        yield PositionScore(
            first,
            end,
            loss.value,
            float(hits[:, inside].sum()) / count,
            count,
            loss.interval,
            tuple((lost / counts).tolist()),
        )
        first, last = last + 1, 2 * last
