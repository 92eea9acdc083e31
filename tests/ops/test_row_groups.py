"""Rows that share something are laid side by side and put back; blocks of rows are small enough for a cache."""

import torch

from refine.ops import row_groups
from refine.ops.row_groups import Groups, blocks


def test_equal_groups_in_order_are_a_view():
    x = torch.randn(6, 3)
    groups = Groups([4, 4, 7, 7, 1, 1])
    gathered = groups.gather(x)
    assert groups.distinct == [4, 7, 1] and gathered.shape == (3, 2, 3)
    assert gathered.data_ptr() == x.data_ptr()
    assert torch.equal(groups.scatter(gathered), x)


def test_unequal_groups_are_filled_up_and_rows_find_back():
    x = torch.randn(5, 3, requires_grad=True)
    groups = Groups([(0, 1), (2, 3), (0, 1), (2, 3), (0, 1)])
    gathered = groups.gather(x)
    assert gathered.shape == (2, 3, 3)
    assert torch.equal(gathered[0], x[[0, 2, 4]]) and torch.equal(gathered[1, :2], x[[1, 3]])
    weights = torch.randn(5, 3)
    (groups.scatter(gathered) * weights).sum().backward()
    assert torch.equal(x.grad, weights), "what fills up a group sends no gradient"


def test_blocks_are_all_rows_in_order_and_few_numbers_each(monkeypatch):
    monkeypatch.setattr(row_groups, "CACHED_NUMBERS", 10)
    x = torch.arange(28).view(7, 4)
    parts = [x[rows] for rows in blocks(x)]
    assert torch.equal(torch.cat(parts), x) and all(part.numel() <= 10 for part in parts)
    assert [len(x[rows]) for rows in blocks(torch.ones(2, 100))] == [1, 1], "at least one row"
    assert blocks(torch.ones(0, 4)) == []
    assert blocks(torch.ones(7, 1), numbers=4) == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7)]
