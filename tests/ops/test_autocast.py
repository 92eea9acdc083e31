"""Products and passes that autocast does not change, forward and backward."""

import torch

from refine.ops.autocast import own_precision, product


def test_a_product_and_its_gradients_are_exact_also_under_autocast():
    a, b = (torch.randn(3, 2, 5, 5, requires_grad=True) for _ in range(2))
    exact = (a @ b).detach()
    wanted = torch.autograd.grad((a @ b).sin().sum(), (a, b))
    with torch.autocast("cpu", torch.bfloat16):
        found = product(a, b)
        assert found.dtype == torch.float32 and torch.equal(found.detach(), exact)
        gradients = torch.autograd.grad(found.sin().sum(), (a, b))
    for gradient, expected in zip(gradients, wanted, strict=True):
        assert torch.equal(gradient, expected)


def test_its_gradients_are_those_of_a_product():
    a, b = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True), torch.randn(2, 4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(product, (a, b.requires_grad_()))
    assert torch.autograd.gradcheck(lambda x: product(x, b.detach()), (a,))


def test_a_function_runs_outside_autocast_and_leaves_it_on():
    @own_precision
    def enabled(nothing, x):
        return torch.is_autocast_enabled("cpu")

    assert not enabled(None, torch.ones(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert not enabled(None, torch.ones(1)) and torch.is_autocast_enabled("cpu")
