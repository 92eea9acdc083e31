"""The policy loss is PPO's, with the dual clip."""

from __future__ import annotations

import math

import pytest
import torch

from refine.objective.loss import policy_loss
from refine.settings.objective import ObjectiveSettings


def plain(log_ratio: float, advantage: float) -> float:
    ratio = math.exp(log_ratio)
    loss = max(-advantage * ratio, -advantage * min(max(ratio, 0.8), 1.2))
    return min(loss, -advantage * 3) if advantage < 0 else loss


@pytest.mark.parametrize("advantage", [-1.5, -0.1, 0.0, 0.4, 2.0])
def test_each_tokens_loss_is_the_formula(advantage):
    log_ratios = [-2.0, -0.3, -0.1, 0.0, 0.1, 0.3, 0.9, 1.2, 2.0]
    old = torch.full((1, 1, len(log_ratios)), -1.3)
    new = (old + torch.tensor(log_ratios)).requires_grad_()
    loss, ratio, fraction = policy_loss(new, old, torch.full((1, 1), advantage), 7, ObjectiveSettings())
    assert float(loss.detach()) == pytest.approx(sum(plain(x, advantage) for x in log_ratios) / 7, rel=1e-5, abs=1e-7)
    assert ratio.flatten().tolist() == pytest.approx([math.exp(x) for x in log_ratios], rel=1e-5)
    clipped = sum(plain(x, advantage) != -advantage * math.exp(x) for x in log_ratios)
    assert float(fraction) * len(log_ratios) == pytest.approx(clipped, abs=1e-5)


def test_on_policy_the_gradient_is_that_of_the_log_probabilities_times_the_advantage():
    log_probs = (-torch.rand(3, 2, 4)).requires_grad_()
    advantage = torch.randn(3, 2)
    loss, ratio, fraction = policy_loss(log_probs, log_probs, advantage, 24, ObjectiveSettings())
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert torch.allclose(gradient, -advantage[..., None].expand(3, 2, 4) / 24)
    assert (ratio == 1).all() and fraction == 0


def test_a_token_clipped_on_the_good_side_has_no_gradient():
    log_probs = torch.tensor([[[0.5, -0.5]]], requires_grad=True)
    loss, _, fraction = policy_loss(log_probs, torch.zeros(1, 1, 2), torch.ones(1, 1), 2, ObjectiveSettings())
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert gradient[0, 0, 0] == 0 and gradient[0, 0, 1] < 0 and fraction == 0.5


def test_no_tokens_give_zero_and_not_nan():
    nothing = torch.zeros(0, 2, 5)
    loss, ratio, fraction = policy_loss(nothing, nothing, torch.zeros(0, 2), 1, ObjectiveSettings())
    assert loss == 0 and fraction == 0 and ratio.shape == (0, 2, 5)
