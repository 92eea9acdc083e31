"""Marks stay at their tokens when documents are cut and packed."""

from __future__ import annotations

import pytest

from refine.errors import DataError
from refine.training.dataset import collate, token_rows

ROWS = [
    {"tokens": list(range(10, 20)), "marks": [2, 5, 9]},
    {"tokens": list(range(30, 34)), "marks": [1]},
    {"tokens": list(range(50, 57)), "marks": [3, 6], "lengths": [4, 3]},
]


def marked_tokens(row) -> list[int]:
    """The token after each mark."""
    return [int(row.tokens[mark]) for mark in row.marks]


def test_marks_are_those_of_the_row():
    rows = token_rows(ROWS)
    assert rows.marked and [marked_tokens(rows[n]) for n in range(3)] == [[12, 15, 19], [31], [53, 56]]
    assert not token_rows([{"tokens": [1, 2]}]).marked


def test_cut_and_packed_rows_keep_marks_except_where_a_piece_begins():
    rows = token_rows(ROWS, max_length=5)
    assert [marked_tokens(rows[n]) for n in range(len(rows))] == [[12], [19], [31], [53], [56]]  # 15 begins a piece
    packed = token_rows(ROWS, max_length=9, packing=True)
    found = [packed[n] for n in range(len(packed))]
    assert [marked_tokens(row) for row in found] == [[12, 15], [31, 53], [56]]
    assert [row.lengths for row in found] == [(9,), (1, 4, 4), (3,)]


def test_a_batch_has_marks_if_a_row_has():
    rows = token_rows([*ROWS, {"tokens": [1, 2, 3]}])
    assert collate([rows[0], rows[3]])["marks"] == [[2, 5, 9], []]
    assert collate([rows[3]])["marks"] is None


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ([0], r"row 0 \(row 0\): mark 0 lies outside its documents of \[4, 3\] tokens"),
        ([4], "mark 4 lies outside"),
        ([7], "mark 7 lies outside"),
        ([1, 99], "mark 99 lies outside"),
        ([1.5], "marks: expected a list of token ids"),
    ],
)
def test_marks_outside_of_their_document_are_refused(marks, message):
    with pytest.raises(DataError, match=message):
        token_rows([{"tokens": list(range(7)), "lengths": [4, 3], "marks": marks}])[0]
