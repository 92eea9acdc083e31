"""Rows picked later have the gradients of plain indexing, without a zero-filled tensor for each pick."""

from __future__ import annotations

import pytest
import torch

from refine.ops.tapped_rows import LaterRows

PICKS = [torch.tensor([3, 0, 3]), torch.tensor([5]), torch.tensor([], dtype=torch.int64)]


def loss_of(x: torch.Tensor, use_tensor: bool, later: bool) -> torch.Tensor:
    y = x * 2
    rows = LaterRows(y)
    picked = [rows.pick(i) if later else y.index_select(0, i) for i in PICKS]
    used = rows.tensor if later else y
    loss = sum((p.sin() * (n + 1)).sum() for n, p in enumerate(picked))
    return loss + (used**2).sum() if use_tensor else loss


@pytest.mark.parametrize("use_tensor", [True, False])
def test_gradients_are_those_of_indexing(use_tensor):
    x = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    losses = [loss_of(x, use_tensor, later) for later in (True, False)]
    assert torch.equal(*losses)
    found, wanted = (torch.autograd.grad(loss, x)[0] for loss in losses)
    assert torch.allclose(found, wanted, atol=1e-14, rtol=0)


def test_a_graph_that_is_retained_gives_the_same_gradient_again():
    x = torch.randn(7, 4, requires_grad=True)
    loss = loss_of(x, True, True)
    first = torch.autograd.grad(loss, x, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, x)[0])


def test_a_gradient_that_the_tensor_shares_with_others_is_not_changed():
    x = torch.randn(7, 4, requires_grad=True)
    rows = LaterRows(x)
    other = torch.zeros_like(x, requires_grad=True)
    total = rows.tensor + other  # both get the very same gradient tensor
    found = torch.autograd.grad(total.sum() + rows.pick(torch.tensor([2])).sum(), [x, other])
    assert torch.equal(found[1], torch.ones_like(x))
    assert found[0].sum(1).tolist() == [4, 4, 8, 4, 4, 4, 4]


def test_rows_never_picked_cost_no_gradient():
    x = torch.randn(7, 4, requires_grad=True)
    rows = LaterRows(x * 2)
    (found,) = torch.autograd.grad(rows.tensor.sum(), x)
    assert (found == 2).all()


def test_without_gradient_it_is_plain_indexing():
    x = torch.randn(7, 4)
    rows = LaterRows(x)
    assert rows.tensor is x and torch.equal(rows.pick(PICKS[0]), x[PICKS[0]])
    with torch.no_grad():
        assert not LaterRows(x.requires_grad_()).pick(PICKS[0]).requires_grad


def test_many_picks_make_one_gradient_as_long_as_the_tensor():
    from torch.utils._python_dispatch import TorchDispatchMode

    made = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            result = op(*args, **(kwargs or {}))
            made.append((str(op), result.numel() if isinstance(result, torch.Tensor) else 0))
            return result

    x = torch.randn(1000, 4, requires_grad=True)
    rows = LaterRows(x)
    picks = sum(rows.pick(torch.tensor([i])).sum() for i in range(10))
    with Sizes():
        torch.autograd.grad(picks, x)
    assert sum("zeros" in op and size == 4000 for op, size in made) == 1
