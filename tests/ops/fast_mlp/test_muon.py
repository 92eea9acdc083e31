"""Newton–Schulz steps: singular values go towards 1, singular vectors stay."""

import pytest
import torch

from refine.ops.fast_mlp.muon import COEFFICIENTS, orthogonalise


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
