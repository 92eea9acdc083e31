"""RMS norm and unit length are their formulas, with exact gradients."""

import torch

from refine.ops.rms_norm import RMSNorm, ZeroCentredRMSNorm, unit_length


def test_the_norm_is_torchs():
    x = torch.randn(7, 3, 12, dtype=torch.float64)
    norm = RMSNorm(12, 1e-5).double()
    torch.nn.init.uniform_(norm.weight)
    assert torch.allclose(norm(x), torch.nn.functional.rms_norm(x, (12,), norm.weight, 1e-5))
    single = norm.float()(x.bfloat16())
    assert single.dtype == torch.bfloat16


def test_unit_length_is_its_formula():
    x = torch.randn(7, 12, dtype=torch.float64)
    assert torch.allclose(unit_length(x), x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6))
    assert torch.equal(unit_length(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_gradients_are_exact():
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    norm = RMSNorm(6, 1e-5).double()
    assert torch.autograd.gradcheck(unit_length, (x,))
    assert torch.autograd.gradcheck(
        lambda x, w: torch.func.functional_call(norm, {"weight": w}, (x,)), (x, norm.weight)
    )


def test_autocast_does_not_round_what_is_divided_by():
    x, norm = torch.randn(7, 256), RMSNorm(256, 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(x)
    assert torch.equal(found, norm(x))


def test_a_zero_centred_norm_multiplies_by_one_plus_its_weight():
    norm, plain = ZeroCentredRMSNorm(8, 1e-3).double(), RMSNorm(8, 1e-3).double()
    x = torch.randn(5, 8, dtype=torch.float64)
    assert torch.equal(norm(x), plain(x)), "its weights start at 0"
    with torch.no_grad():
        norm.weight.uniform_(-1, 1)
        plain.weight.copy_(1 + norm.weight)
    assert torch.equal(norm(x), plain(x))
