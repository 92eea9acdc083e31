"""Documents packed in rows, and where in them rollouts start."""

from __future__ import annotations

import pytest
import torch

from refine.errors import SettingError
from refine.objective.documents import Documents, RolloutStarts

PACKED = Documents((2, 9), [[4, 1, 3], [9]])


def test_tokens_that_another_of_their_document_follows_are_those_that_predict():
    assert PACKED.has_next(torch.device("cpu")).int().tolist() == [
        [1, 1, 1, 0, 0, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1, 0],
    ]
    assert PACKED.predicted == 3 + 0 + 2 + 8 == int(PACKED.has_next(torch.device("cpu")).sum())


def test_what_the_documents_leave_over_is_padding():
    assert PACKED.real(torch.device("cpu")).sum(1).tolist() == [8, 9]


def test_the_grid_has_a_document_a_row():
    values = torch.arange(18.0).view(2, 9)
    assert PACKED.grid(values)[:3].tolist() == [
        [0, 1, 2, 3, 0, 0, 0, 0, 0],
        [4, 0, 0, 0, 0, 0, 0, 0, 0],
        [5, 6, 7, 0, 0, 0, 0, 0, 0],
    ]
    assert torch.equal(Documents((2, 9), None).grid(values), values)


def test_given_positions_find_their_documents():
    starts = RolloutStarts.at(torch.tensor([[2, -1, 7], [7, 1, -1]]), PACKED, 1)
    assert starts.document.tolist() == [0, 2, 3, 3]
    assert starts.positions().tolist() == [[2, -1, 7], [7, 1, -1]]
    assert starts.scatter(torch.ones(4), -3.0).tolist() == [[1, -3, 1], [1, 1, -3]]


@pytest.mark.parametrize("position", [0, 3, 5, 8, 9, 10, -2])
def test_a_position_without_text_after_it_in_its_document_is_refused_by_place(position):
    with pytest.raises(SettingError, match=rf"positions\[0, 1\] is {position}: expected"):
        RolloutStarts.at(torch.tensor([[1, position], [1, 1]]), PACKED, 2)


def test_positions_of_another_batch_are_refused():
    with pytest.raises(SettingError, match=r"int64 of shape \[2, c\]"):
        RolloutStarts.at(torch.ones(3, 4, dtype=torch.int64), PACKED, 2)
