"""Newton–Schulz steps: singular values go towards 1, singular vectors stay."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from refine.ops.fast_mlp import mlp, muon
from refine.ops.fast_mlp.mlp import Rule, initial_state, row_norms
from refine.ops.fast_mlp.muon import COEFFICIENTS, by_steps, orthogonalise
from tests.fixtures.launches import Launches, saved_bytes
from tests.fixtures.pretended_device import Watch, elsewhere


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (3, 2, 5, 7)], ids=str)
def test_singular_values_go_through_the_five_polynomials_and_vectors_stay(shape):
    torch.manual_seed(0)
    gradient = torch.randn(*shape, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(gradient, full_matrices=False)
    s = s / (gradient.flatten(-2).norm(dim=-1, keepdim=True) + 1e-7)
    for a, b, c in COEFFICIENTS:
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(orthogonalise(gradient), u * s.unsqueeze(-2) @ vh, rtol=1e-9, atol=1e-9)


def test_well_conditioned_matrices_become_nearly_orthogonal():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    values = torch.linalg.svdvals(orthogonalise(basis * torch.linspace(0.2, 3, 8, dtype=torch.float64)))
    assert values.min() > 0.7 and values.max() < 1.3


def test_zeros_stay_zero_with_a_finite_gradient():
    gradient = torch.zeros(3, 4, requires_grad=True)
    result = orthogonalise(gradient)
    result.sum().backward()
    assert not result.any() and gradient.grad.isfinite().all()


def test_the_published_bfloat16_steps_are_near_the_exact_ones():
    torch.manual_seed(0)
    gradient = torch.randn(16, 16)
    exact, rounded = orthogonalise(gradient.double()), orthogonalise(gradient, torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() / exact.norm() < 0.05


def gradient_of_tokens(tokens: int, width: int) -> torch.Tensor:
    """Σ v kᵀ of random tokens in bfloat16, keys with a decaying spectrum, as float64."""
    torch.manual_seed(tokens)
    spectrum = torch.arange(1, width + 1).double() ** -0.5
    mix = spectrum[:, None] * torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0]
    keys = (torch.randn(tokens, width, dtype=torch.float64) @ mix).bfloat16().double()
    return torch.randn(tokens, width).bfloat16().double().T @ keys


def in_tf32(x: torch.Tensor) -> torch.Tensor:
    """float32 rounded to the 11 bits of TF32, to the nearest, ties to even."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("tokens", [24, 48, 256])
def test_tf32_is_nearer_to_float64_than_bfloat16_as_published_and_than_rounding_the_gradient_to_it(tokens, monkeypatch):
    """What a GPU computes by default, with TF32's rounding made here; and its rounding is worth a rule at all."""
    gradient = gradient_of_tokens(tokens, 48)
    exact = by_steps(gradient)

    def off(x):
        return float((x.double() - exact).norm() / exact.norm())

    published, given_rounded, whole = (
        off(by_steps(x)) for x in (gradient.bfloat16(), gradient.bfloat16().double(), gradient.float())
    )
    assert float((in_tf32(gradient.float()).double() - gradient).norm() / gradient.norm()) < 2**-11
    monkeypatch.setattr(muon, "product", lambda a, b: in_tf32(a) @ in_tf32(b))
    rounded = off(by_steps(gradient.float()))
    assert 1e-5 < whole * 100 < rounded < 0.003 < published and rounded < given_rounded


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (3, 2, 5, 7), (2, 1, 7, 3)], ids=str)
def test_on_a_device_a_step_is_three_launches_and_equals_its_twin(shape):
    torch.manual_seed(0)
    gradient = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    there = elsewhere(gradient.detach()).requires_grad_()
    weights = torch.arange(gradient.numel(), dtype=torch.float64).sin().view(shape)
    with Watch(), Launches() as launches:
        found = orthogonalise(there)
        forward = launches.total
        (back,) = torch.autograd.grad((found * elsewhere(weights)).sum(), there)
    flat = gradient.mT if shape[-2] > shape[-1] else gradient
    wanted = by_steps(flat)
    wanted = wanted.mT if shape[-2] > shape[-1] else wanted
    (expected,) = torch.autograd.grad((wanted * weights).sum(), gradient)
    torch.testing.assert_close(found.as_subclass(torch.Tensor), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(back.as_subclass(torch.Tensor), expected, rtol=1e-10, atol=1e-10)
    assert forward <= 3 * 5 + 4


def test_zeros_have_a_finite_gradient_on_a_device_too():
    gradient = elsewhere(torch.zeros(3, 4)).requires_grad_()
    with Watch():
        orthogonalise(gradient).sum().backward()
    assert gradient.grad.isfinite().all()


def test_a_backward_pass_takes_the_steps_again_and_keeps_their_argument_only():
    gradient = torch.randn(3, 16, 16, requires_grad=True)
    found, kept = saved_bytes(lambda: orthogonalise(gradient))
    assert kept <= 2 * gradient.numel() * 4 + 100, "the gradient, and the matrices of norm 1"
    twin, more = saved_bytes(lambda: by_steps(gradient))
    assert more > 7 * kept and torch.equal(found, twin)
    pairs = zip(*(torch.autograd.grad(x.sin().sum(), gradient) for x in (found, twin)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "to the last bit on a CPU"


class Precisions(TorchDispatchMode):
    """What a GPU would do with float32 in each product: "tf32", or not."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.baddbmm, torch.ops.aten.mm):
            self.seen.append(torch.backends.cuda.matmul.fp32_precision)
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("dtype", "muon_dtype", "wanted"),
    [
        (torch.bfloat16, None, True),
        (torch.bfloat16, torch.float32, False),
        (torch.bfloat16, torch.bfloat16, False),
        (torch.float32, None, False),
    ],
)
def test_muons_products_are_in_tf32_on_a_device_for_tokens_in_16_bits_unless_a_dtype_is_set(dtype, muon_dtype, wanted):
    rule = Rule(20, muon=True, muon_dtype=muon_dtype)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.manual_seed(0)
    state = initial_state(torch.randn(2, 6, 6), torch.randn(2, 6, 6), torch.randn(2, 6, 6), rule)
    tokens = {"keys": torch.randn(1, 20, 2, 6).to(dtype), "values": torch.randn(1, 20, 2, 6).to(dtype)}
    tokens["rates"] = torch.rand(1, 20, 2, 3)
    state, tokens = ({name: elsewhere(x).requires_grad_() for name, x in held.items()} for held in (state, tokens))
    with Watch(), Precisions() as precisions:
        after = mlp.update(state, tokens, row_norms(state), rule)
        forward = len(precisions.seen)
        (after["gates"].sum() + after["out"].sum()).backward()
    assert forward == 4 + 15 and len(precisions.seen) >= 2.5 * forward
    assert {x == "tf32" for x in precisions.seen} == {wanted}
    assert torch.backends.cuda.matmul.fp32_precision == before, "for these products alone"
