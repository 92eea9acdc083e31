"""The last tokens of each row: views of a read, appended to while few, copied when compacted, joined or too many."""

import pytest
import torch

from refine.models.lact.recent_tokens import RecentTokens, RecentTrace
from refine.ops.layout import Layout

POOL = torch.arange(20.0)[:, None]


def rows_of(recent):
    """The tokens of each row, as lists."""
    laid = recent.compact().pool["keys"][:, 0]
    slots = max(recent.counts)
    return [laid[(r + 1) * slots - n : (r + 1) * slots].tolist() for r, n in enumerate(recent.counts)]


@pytest.fixture
def recent():
    """Three rows: two overlapping windows of a pool and an empty one."""
    return RecentTokens({"keys": POOL}, [(2, 5), (4, 6), (0, 0)])


def test_rows_are_ranges_of_the_pool_and_selecting_copies_none(recent):
    assert recent.counts == (3, 2, 0) and rows_of(recent) == [[2, 3, 4], [4, 5], []]
    some = recent.select([1, 1, 0])
    assert some.pool["keys"].data_ptr() == POOL.data_ptr() and rows_of(some) == [[4, 5], [4, 5], [2, 3, 4]]
    assert rows_of(recent.where([0, None])) == [[2, 3, 4], []]


def test_compact_rows_are_aligned_at_their_last_token_behind_zeros(recent):
    compact = recent.compact()
    assert compact.pool["keys"][:, 0].tolist() == [2, 3, 4, 0, 4, 5, 0, 0, 0]
    assert compact.counts == recent.counts


def test_joined_rows_keep_their_tokens(recent):
    assert rows_of(RecentTokens.cat([recent, recent.select([1])])) == [[2, 3, 4], [4, 5], [], [4, 5]]


def test_shared_tokens_count_once():
    shared = RecentTokens({"keys": POOL}, [(2, 5)] * 4)
    assert shared.nbytes == 3 * POOL.element_size()


@pytest.mark.parametrize("append", [False, True])
def test_a_read_moves_the_window_on(recent, append):
    """Two new tokens a row, of which some are read; the last four tokens are kept."""
    new = torch.tensor([100.0, 101, 200, 201, 300, 301])[:, None]
    trace = RecentTrace(recent, Layout([2, 2, 2]), {"keys": new})
    after = trace.at([0, 1, 2], [2, 2, 2], [4, 4, 2], append)
    assert rows_of(after) == [[3, 4, 100, 101], [4, 5, 200, 201], [300, 301]]
    assert (after.pool["keys"].data_ptr() == POOL.data_ptr()) == append, "appending leaves the pool where it is"
    partly = trace.at([2, 0], [1, 1], [1, 3], append)
    assert rows_of(partly) == [[300], [3, 4, 100]]


def test_appended_tokens_are_read_on_as_if_they_were_in_the_pool(recent):
    first = RecentTrace(recent, Layout([1, 1, 1]), {"keys": torch.tensor([[100.0], [200], [300]])})
    second = {"keys": torch.tensor([[101.0], [102], [201], [301]])}
    for append in (False, True):
        held = first.at([0, 1, 2], [1, 1, 1], [3, 3, 1], append)
        after = RecentTrace(held, Layout([2, 1, 1]), second).at([0, 1, 2], [2, 1, 1], [3, 4, 2], append=False)
        assert rows_of(after) == [[100, 101, 102], [4, 5, 200, 201], [300, 301]]
