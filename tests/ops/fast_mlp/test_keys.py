"""LaCT's fast queries and keys are their steps one after the other, with the same gradients."""

import pytest
import torch

from refine.ops import row_groups
from refine.ops.fast_mlp.keys import by_steps, fast_keys


def draw(tokens, dtype):
    torch.manual_seed(tokens)
    return [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((tokens, 12), (12,), (12,))]


def distance(a, b):
    return float((a - b).detach().double().norm() / b.detach().double().norm())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-6)], ids=str)
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("tokens", [1, 2, 37])
def test_value_and_gradients_are_the_twins(tokens, silu, dtype, bound, monkeypatch):
    monkeypatch.setattr(row_groups, "CACHED_NUMBERS", 50)  # several blocks and a rest
    inputs = draw(tokens, dtype)
    found, wanted = (f(*inputs, heads=3, silu=silu) for f in (fast_keys, by_steps))
    assert distance(found, wanted) <= bound
    upstream = torch.randn_like(wanted)
    for a, b in zip(*(torch.autograd.grad(y, inputs, upstream) for y in (found, wanted)), strict=True):
        assert a.dtype == b.dtype and distance(a, b) <= bound


def test_every_fast_head_has_unit_length():
    heads = fast_keys(*draw(37, torch.float64), heads=3, silu=True).unflatten(-1, (3, 4))
    torch.testing.assert_close(heads.norm(dim=-1), torch.ones(37, 3, dtype=torch.float64), rtol=1e-3, atol=0)


def test_a_head_of_zeros_stays_zero_with_a_finite_gradient():
    x, scale, _ = draw(3, torch.float32)
    found = fast_keys(x * 0, scale, torch.zeros(12), heads=3, silu=True)
    assert not found.any()
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.sum(), [x, scale]))


def test_bfloat16_is_rounded_once_at_the_end():
    x, scale, offset = (y.detach() for y in draw(37, torch.bfloat16))
    found = fast_keys(x, scale, offset, heads=3, silu=True)
    exact = by_steps(x.float(), scale.float(), offset.float(), heads=3, silu=True)
    assert found.dtype == torch.bfloat16 and torch.equal(found, exact.bfloat16())
