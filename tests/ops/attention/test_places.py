"""Rows whose prefixes can be worked on at once share a place; what they mask is bounded."""

from refine.ops.attention import places
from refine.ops.attention.places import Places
from refine.ops.layout import Layout


def own(place):
    """The lengths of the place's own rows, if they differ."""
    return place.lengths and place.lengths.all[place.lengths.rows]


def test_rows_that_share_a_prefix_and_prefixes_evenly_apart_are_one_place():
    layout = Layout([3] * 6)
    shared = Places(layout, [(0, 7)] * 6, [3] * 6)
    assert [(p.prefixes, p.rows) for p in shared.places] == [(1, 6)]
    even = Places(layout, [(0, 7)] * 2 + [(8, 15)] * 2 + [(16, 23)] * 2, [3] * 6)
    assert [(p.prefixes, p.rows) for p in even.places] == [(3, 2)]
    overlapping = Places(layout, [(i, 7 + i) for i in range(6)], [3] * 6)
    assert len(overlapping.places) == 6, "in one place, their gradients would be added to the same memory at once"


def test_prefixes_that_end_near_each_other_are_one_place_as_long_as_little_is_masked(monkeypatch):
    monkeypatch.setitem(places.MASKED, "cpu", 30)
    ranges = [(2, 12), (2, 7), (2, 40), (2, 7), (2, 45)]
    found = Places(Layout([3] * 5), ranges, [3] * 5)
    assert [(p.length, own(p)) for p in found.places] == [(10, (5, 5, 10)), (43, (38, 43))]
    assert len({p.lengths.all for p in found.places}) == 1, "they go to a device once"
    assert found.new_order.tolist() == [n for row in (1, 3, 0, 2, 4) for n in range(3 * row, 3 * row + 3)]
    longer = Places(Layout([4] * 5), ranges, [4] * 5)
    assert [own(p) for p in longer.places] == [None, None, (38, 43)], "twice 5 tokens of 4 queries are 40 scores"


def test_prefixes_of_several_texts_do_not_share_a_place():
    found = Places(Layout([1] * 4), [(0, 7), (0, 8), (9, 16), (9, 17)], [1] * 4)
    assert [(p.first, own(p)) for p in found.places] == [(0, (7, 8)), (9, (7, 8))]


def test_what_a_row_masks_is_what_lies_behind_its_prefix():
    place = Places(Layout([1, 1]), [(4, 6), (4, 9)], [1, 1]).places[0]
    assert place.back_to_prefix("cpu")[:, 0, 0].tolist() == [[2, 1, 0, -1, -2], [5, 4, 3, 2, 1]]
