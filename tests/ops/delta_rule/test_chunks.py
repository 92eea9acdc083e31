"""Documents cut into chunks and joined again; steps, groups of steps, and the chunk of a tap."""

import pytest
import torch

from refine.ops.delta_rule import chunks as chunking
from refine.ops.delta_rule.chunks import Chunks
from refine.ops.layout import Layout, Taps


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


@pytest.mark.parametrize("heads", [1, 3])
def test_groups_are_all_steps_in_order_and_few_enough_chunks_for_a_cache(heads, monkeypatch):
    monkeypatch.setattr(chunking, "CACHED_CHUNKS", 6)
    chunks = Chunks(Layout([3, 40, 8, 1, 17]), 8)
    groups = chunks.groups(heads)
    assert [j for group in groups for j in group] == list(range(len(chunks.active)))
    held = [(chunks.offset[group.stop] - chunks.offset[group.start]) * heads for group in groups]
    assert all(size <= 6 or len(group) == 1 for size, group in zip(held, groups, strict=True))


def test_only_one_full_chunk_a_document_is_a_step_of_decoding():
    layout = Layout([1, 1, 1])
    chunks = Chunks.of(layout, 8)
    assert Chunks.of(layout, 8) is chunks, "made once for all layers"
    assert chunks.ends_all(Taps.ends(layout)) and not chunks.ends_all(Taps.ends(layout, [1, 0, 2]))
    longer = Layout([9, 9])
    assert not Chunks(longer, 8).ends_all(Taps.ends(longer))
