"""A batch of rows becomes documents laid end to end, and their values find back to their places."""

import pytest
import torch

from refine.errors import ModelError
from refine.models.batch import Batch

TOKENS = torch.arange(12).view(2, 6)


def test_packed_rows_are_documents_end_to_end_and_their_rest_is_padding():
    batch = Batch.packed(TOKENS, [[2, 3], [4]], None)
    assert batch.layout.lengths == (2, 3, 4)
    assert batch.flat(TOKENS).tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert batch.square(batch.flat(TOKENS)).tolist() == [[0, 1, 2, 3, 4, 0], [6, 7, 8, 9, 0, 0]]
    assert batch.ends.documents == (1, 2) and batch.ends.counts == (3, 4)


def test_only_the_first_document_of_a_row_continues_its_memory(model, tokens):
    memory = model.read(tokens(2, 7)).memory
    batch = Batch.packed(TOKENS, [[2, 3], [4]], memory)
    assert batch.origin == [0, -1, 1] and batch.layout.positions == (7, 0, 7)


def test_a_mask_leaves_one_document_a_row_and_none_where_all_is_padding():
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
    batch = Batch.masked(TOKENS, mask, None)
    assert batch.lengths == [[4], []] and batch.layout.lengths == (4,)
    assert batch.flat(TOKENS).tolist() == [2, 3, 4, 5]
    assert batch.ends.rows == 1


def test_without_padding_nothing_is_copied():
    batch = Batch.packed(TOKENS, None, None)
    assert batch.index is None
    assert batch.flat(TOKENS).data_ptr() == TOKENS.data_ptr()


def test_a_tap_of_a_row_is_a_place_in_one_of_its_documents():
    batch = Batch.packed(TOKENS, [[2, 3], [4]], None)
    taps = batch.taps(torch.tensor([[2, 3], [4, 1]]))
    assert taps.documents == (0, 1, 2, 2) and taps.counts == (2, 1, 4, 1)
    assert batch.tap_positions(taps).tolist() == [2, 1, 4, 1], "of the document's memory, not of the row"
    with pytest.raises(ModelError, match=r"tap 6 at \[0, 1\] is out of range: expected 1 \.\. 5, row 0's tokens"):
        batch.taps(torch.tensor([[1, 6], [1, 1]]))
