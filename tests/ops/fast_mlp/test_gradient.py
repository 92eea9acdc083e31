"""The fast MLP's gradient, elementwise part: it is autograd's, and so is its derivative."""

import torch
from torch.nn.functional import silu

from refine.ops.fast_mlp.gradient import weighted_sides


def draw(dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(2, 3, 5, n, dtype=dtype, requires_grad=True) for n in (8, 4, 3)]


def test_sides_are_the_gradients_of_the_gated_product():
    gate_up, inner, rates = draw()
    score = (silu(gate_up[..., :4]) * gate_up[..., 4:] * inner).sum()
    slopes, acts = torch.autograd.grad(score, [gate_up, inner])
    sides, weighted = weighted_sides(gate_up, inner, rates)
    scale = torch.cat([rates[..., :1].expand(2, 3, 5, 4), rates[..., 2:].expand(2, 3, 5, 4)], -1)
    torch.testing.assert_close(sides, slopes * scale)
    torch.testing.assert_close(weighted, acts * rates[..., 1:2])


def test_its_derivative_is_the_numerical_one():
    assert torch.autograd.gradcheck(weighted_sides, draw())


def test_float32_rates_of_bfloat16_tokens_are_not_rounded():
    gate_up, inner, _ = (x.detach() for x in draw(torch.bfloat16))
    rates = torch.full((2, 3, 5, 3), 1.001)
    sides, weighted = weighted_sides(gate_up, inner, rates)
    exact, _ = weighted_sides(gate_up.double(), inner.double(), rates.double())
    assert sides.dtype == weighted.dtype == torch.bfloat16
    assert ((sides.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-12).all()
