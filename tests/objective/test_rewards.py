"""Rewards are the formulas of docs/method.md."""

from __future__ import annotations

import math

import pytest
import torch

from refine.objective.rewards import RANGES, REWARDS, rewards
from refine.settings import objective


def test_rewards_are_the_plain_formulas():
    generator = torch.Generator().manual_seed(0)
    hidden, actual = torch.randn(2, 3, 4, 6, generator=generator), torch.randn(2, 4, 6, generator=generator)
    rollouts = torch.randint(0, 3, (2, 3, 4), generator=generator)
    text = torch.randint(0, 3, (2, 4), generator=generator)
    found = rewards(hidden, actual, rollouts, text)
    for r in range(2):
        for i in range(3):
            cosines = []
            for j in range(4):
                h, a = hidden[r, i, j].tolist(), actual[r, j].tolist()
                dot = sum(x * y for x, y in zip(h, a, strict=True))
                cosines.append(dot / math.sqrt(sum(x * x for x in h) * sum(y * y for y in a)))
            equal = sum(int(rollouts[r, i, j] == text[r, j]) for j in range(4)) / 4
            assert float(found["cosine"][r, i]) == pytest.approx(sum(cosines) / 4, rel=1e-5)
            assert float(found["binary"][r, i]) == equal
            assert float(found["hybrid"][r, i]) == pytest.approx(sum(cosines) / 4 + equal, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_states_and_tokens_equal_to_the_text_score_one_one_and_two(dtype):
    hidden = torch.randn(2, 3, 5, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    tokens = torch.arange(30).view(2, 3, 5)
    found = rewards(hidden[:, :1], hidden[:, 0], tokens[:, :1], tokens[:, 0])
    assert all(x.dtype == torch.promote_types(dtype, torch.float32) for x in found.values())
    assert torch.allclose(found["cosine"], torch.ones((), dtype=found["cosine"].dtype), atol=1e-6, rtol=0)
    assert (found["binary"] == 1).all()
    assert torch.allclose(found["hybrid"], torch.full((), 2, dtype=found["hybrid"].dtype), atol=1e-6, rtol=0)


def test_every_reward_can_be_optimised():
    assert tuple(REWARDS) == tuple(RANGES) == objective.REWARDS
