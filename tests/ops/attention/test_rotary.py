"""Rotary positions: rotate-half, true positions, angles of the published precision."""

import torch

from refine.ops.attention import rotary


def test_pairs_of_the_two_halves_turn_by_position_times_frequency():
    x, positions = torch.randn(5, 3, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 77, 1000])
    turned = rotary.rotate(x, rotary.table(positions, 8, 100.0, torch.float64))
    pairs = torch.complex(x[..., :4], x[..., 4:])
    angles = positions[:, None].double() * 100.0 ** -(torch.arange(4).double() / 4)
    expected = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
    torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], -1))


def test_scores_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 8, dtype=torch.float64)
    near, far = torch.tensor([5, 2]), torch.tensor([1005, 1002])
    scores = []
    for at in (near, far):
        turned = rotary.rotate(torch.stack([q, k]), rotary.table(at, 8, 1e4, torch.float64))
        scores.append((turned[0] * turned[1]).sum())
    torch.testing.assert_close(*scores)


def test_a_bfloat16_model_has_float32_angles_and_bfloat16_results():
    cos, _ = at = rotary.table(torch.tensor([70001]), 8, 1e6, torch.bfloat16)
    assert cos.dtype == torch.float32
    assert rotary.rotate(torch.randn(1, 2, 8, dtype=torch.bfloat16), at).dtype == torch.bfloat16


def test_its_derivative_is_the_numerical_one():
    at = rotary.table(torch.tensor([0, 1, 2, 77, 1000]), 8, 100.0, torch.float64)
    x = torch.randn(5, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotary.rotate(x, at), x)
