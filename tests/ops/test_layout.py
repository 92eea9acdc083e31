"""Documents laid end to end: every token knows its document, offset and position; taps are points of a read."""

import pytest
import torch

from refine.ops.layout import Layout, Taps


def test_tokens_know_their_document_offset_and_true_position():
    layout = Layout([3, 1, 2], positions=[10, 0, 5])
    assert layout.document_of_token().tolist() == [0, 0, 0, 1, 2, 2]
    assert layout.offset_of_token().tolist() == [0, 1, 2, 0, 0, 1]
    assert layout.position_of_token().tolist() == [10, 11, 12, 0, 5, 6]
    assert layout.width is None and Layout([4, 4]).width == 4


def test_tokens_know_their_place_in_the_batch():
    assert Layout([3, 1, 2], places=[0, 3, 8]).place_of_token().tolist() == [0, 1, 2, 3, 8, 9]
    assert Layout([2, 2], places=[0, 5]).place_of_token().tolist() == [0, 1, 5, 6]
    assert Layout([3, 1, 2]).place_of_token().tolist() == list(range(6))
    for layout in (Layout([3, 1, 2]), Layout([2, 2])):
        documents = torch.arange(layout.documents)
        assert layout.start_of(documents).tolist() == list(layout.starts)


@pytest.mark.parametrize("lengths", [[], [3, 0], [-1]], ids=str)
def test_a_layout_without_tokens_is_refused(lengths):
    with pytest.raises(ValueError, match="at least one token"):
        Layout(lengths)


def test_the_ends_of_a_layout_are_taps():
    ends = Taps.ends(Layout([3, 1, 2]), [2, 0])
    assert ends.documents == (2, 0) and ends.counts == (2, 3) and ends.rows == 2
    assert ends.numbers().tolist() == [[2, 0], [2, 3]]
    assert Taps.ends(Layout([3, 1, 2])).counts == (3, 1, 2)


def test_what_layers_derive_is_built_once():
    layout = Layout([3])
    first = layout.once("key", lambda: [1, 2])
    assert layout.once("key", lambda: [1, 2]) is first
    assert layout.once("another key", lambda: [1, 2]) is not first
