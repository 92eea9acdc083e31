"""RMS norm and unit length are their formulas, with exact gradients."""

import pytest
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


@pytest.mark.parametrize("given", [None, "silu", "sigmoid"])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [RMSNorm, ZeroCentredRMSNorm])
def test_a_16_bit_result_is_rounded_once_and_keeps_16_bits(kind, x_dtype, given):
    norm = kind(24, 1e-5)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    x, gate = torch.randn(7, 3, 24).to(x_dtype).requires_grad_(), torch.randn(7, 3, 24).bfloat16().requires_grad_()
    gate, leaves, kept = (gate if given else None), [x, norm.weight, *([gate] if given else [])], []

    def pack(saved):
        kept.append(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        y = norm(x, torch.bfloat16, gate, given or "silu")
    assert {saved.dtype for saved in kept if saved.numel() > 24} == {torch.bfloat16}
    precise = norm(x.float(), None, None if gate is None else gate.float(), given or "silu")
    assert torch.equal(y, precise.bfloat16())
    d = torch.randn(y.shape).bfloat16()
    with torch.no_grad():
        again = y.grad_fn._forward_cls.again(y.grad_fn).float()
    assert torch.allclose(again, y.float(), rtol=2**-6, atol=1e-6)
    expected = torch.autograd.grad(precise, leaves, d.float())
    for one, other in zip(torch.autograd.grad(y, leaves, d), expected, strict=True):
        assert one.dtype == other.dtype and float((one - other).float().norm() / other.float().norm()) < 1e-2
