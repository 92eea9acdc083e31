"""Advantages compare a rollout with its group; in a group of equal rewards they are zero."""

from __future__ import annotations

import statistics

import pytest
import torch

from refine.objective.advantages import advantages

REWARDS = torch.tensor([[0.1, 0.5], [0.3, 0.9], [0.2, 0.2], [0.7, 0.4], [0.6, 0.1]])
DOCUMENT = torch.tensor([0, 0, 0, 2, 2])


def plain(group: list[float]) -> list[float]:
    mean, spread = statistics.mean(group), statistics.stdev(group) if len(group) > 1 else 0.0
    return [(r - mean) / (spread + 1e-6) for r in group]


def test_a_sequences_rollouts_are_compared_with_each_other():
    found = advantages(REWARDS, DOCUMENT, "sequence")
    assert found[:3].flatten().tolist() == pytest.approx(plain(REWARDS[:3].flatten().tolist()), rel=1e-4)
    assert found[3:].flatten().tolist() == pytest.approx(plain(REWARDS[3:].flatten().tolist()), rel=1e-4)


def test_a_positions_rollouts_are_compared_with_each_other():
    found = advantages(REWARDS, DOCUMENT, "position")
    for r in range(5):
        assert found[r].tolist() == pytest.approx(plain(REWARDS[r].tolist()), rel=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -2.7])
@pytest.mark.parametrize("n", [1, 3, 7])
def test_equal_rewards_give_exactly_zero(value, n):
    assert not advantages(torch.full((3, n), value), torch.tensor([0, 0, 1]), "sequence").any()
    assert not advantages(torch.full((3, n), value), torch.tensor([0, 0, 1]), "position").any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [1.0, 2.0, 0.3])
def test_rewards_that_are_equal_but_for_rounding_give_exactly_zero(value, dtype):
    eps = torch.finfo(dtype).eps
    values = torch.tensor([[value * (1 + i * eps) for i in (0, 1, -1)]], dtype=dtype)
    assert values.unique().numel() > 1
    assert not advantages(values, torch.tensor([0]), "sequence").any()
    apart = torch.tensor([[value, value + 1e-4]], dtype=dtype)
    assert advantages(apart, torch.tensor([0]), "sequence").abs().min() > 0.6


def test_a_lone_reward_gives_zero():
    found = advantages(torch.tensor([[0.3], [0.7], [0.1]]), torch.tensor([0, 1, 1]), "sequence")
    assert found[0] == 0 and found[1] > 0 > found[2]
    assert not advantages(torch.tensor([[0.3], [0.7]]), torch.tensor([0, 0]), "position").any()


def test_no_rewards_give_no_advantages():
    assert advantages(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), "sequence").shape == (0, 4)
