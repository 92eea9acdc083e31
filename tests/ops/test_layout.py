"""Documents laid end to end, cut into chunks and joined again."""

import pytest
import torch

from refine.ops.delta_rule.chunks import Chunks
from refine.ops.layout import Layout, Taps


def test_tokens_know_their_document_offset_and_true_position():
    layout = Layout([3, 1, 2], positions=[10, 0, 5])
    assert layout.document_of_token().tolist() == [0, 0, 0, 1, 2, 2]
    assert layout.offset_of_token().tolist() == [0, 1, 2, 0, 0, 1]
    assert layout.position_of_token().tolist() == [10, 11, 12, 0, 5, 6]
    assert layout.width is None and Layout([4, 4]).width == 4


@pytest.mark.parametrize("lengths", [[], [3, 0], [-1]], ids=str)
def test_a_layout_without_tokens_is_refused(lengths):
    with pytest.raises(ValueError, match="at least one token"):
        Layout(lengths)


@pytest.mark.parametrize("lengths", [[1], [8], [9], [3, 20, 8, 1, 17], [8, 8], [7, 7]], ids=str)
def test_chunks_hold_every_token_once_zeros_at_padding_and_join_back(lengths):
    layout = Layout(lengths)
    chunks = Chunks(layout, 8)
    x = torch.randn(layout.tokens, 2, 3, dtype=torch.float64, requires_grad=True)
    cut = chunks.cut(x)
    assert cut.shape == (chunks.total, 2, chunks.size, 3)
    assert torch.equal(chunks.join(cut), x)
    assert int((cut.detach()[:, 0, :, 0] != 0).sum()) == layout.tokens
    assert torch.autograd.gradcheck(chunks.cut, (x,)) and torch.autograd.gradcheck(
        chunks.join, (cut.detach().requires_grad_(),)
    )


def test_the_chunks_of_one_step_stand_together_longest_documents_first():
    chunks = Chunks(Layout([3, 20, 8, 1, 17]), 8)
    assert chunks.active == [5, 2, 2] and chunks.offset == [0, 5, 7, 9]
    assert [chunks.rank[g] for g in (1, 4)] == [0, 1]
    chunk, read = chunks.tapped(Taps([1, 1, 4, 0], [8, 9, 17, 3]))
    assert chunk.tolist() == [0, 5, 8, chunks.rank[0]] and read.tolist() == [8, 1, 1, 3]
