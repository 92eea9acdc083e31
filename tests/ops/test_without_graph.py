"""Autograd functions run without a graph: the same results, and gradients wherever they are wanted."""

import torch

from refine.ops.autocast import _Product
from refine.ops.rms_norm import _Unit
from refine.ops.without_graph import run


def test_without_gradients_only_forward_runs_and_gives_the_same():
    x = torch.randn(4, 7, requires_grad=True)
    with torch.no_grad():
        y = run(_Unit, x, 1e-6)
    assert not y.requires_grad and torch.equal(y, _Unit.apply(x, 1e-6))


def test_with_gradients_the_function_is_applied():
    a, b = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    run(_Product, a, b, False).sum().backward()
    expected = torch.autograd.grad((a @ b).sum(), (a, b))
    assert torch.equal(a.grad, expected[0]) and torch.equal(b.grad, expected[1])
