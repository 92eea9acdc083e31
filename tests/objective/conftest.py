"""Models, tokens and comparisons for the tests of the objective.

A model joins by its entry in CONFIGS of tests/models/configs.py. B rows · T tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from refine.objective import ObjectiveSettings, StepResult, next_sequence_step
from refine.objective.rereading import Rereading
from refine.objective.rollouts import OneRead
from tests.models.configs import CONFIGS, VOCABULARY
from tests.models.conftest import cancelling, distance, make_model


@pytest.fixture(params=list(CONFIGS))
def model(request: pytest.FixtureRequest):
    """A small model of each kind, float32."""
    return make_model(CONFIGS[request.param], torch.float32)


@pytest.fixture
def build():
    """A small model by its name in CONFIGS (or a config) and dtype."""

    def make(name: str | dict[str, Any], dtype: torch.dtype = torch.float32, seed: int = 0):
        return make_model(CONFIGS[name] if isinstance(name, str) else name, dtype, seed)

    return make


@pytest.fixture
def configs() -> dict[str, dict[str, Any]]:
    """The configs of tests/models/configs.py."""
    return CONFIGS


@pytest.fixture
def draw_tokens():
    """Random tokens [B, T]."""

    def draw(rows: int, length: int, seed: int = 1) -> Tensor:
        return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))

    return draw


class Steps:
    """Runs steps and compares them."""

    distance = staticmethod(distance)

    @staticmethod
    def both(model: Any, tokens: Tensor, settings: ObjectiveSettings, seeds: Tensor, **more: Any):
        """(result, gradients) of the one-read step and of its twin."""
        return [Steps.gradients(model, tokens, settings, seeds, read=read, **more) for read in (OneRead(), Rereading())]

    @staticmethod
    def gradients(
        model: Any, tokens: Tensor, settings: ObjectiveSettings, seeds: Tensor, autocast: bool = False, **more: Any
    ):
        """The step's result (under bfloat16 autocast, if wanted) and the gradient of its loss, by parameter."""
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = next_sequence_step(model, tokens, settings, seeds, **more)
        parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
        grads = torch.autograd.grad(result.loss, list(parameters.values()), allow_unused=True)
        pairs = zip(parameters.items(), grads, strict=True)
        return result, {key: torch.zeros_like(p) if g is None else g for (key, p), g in pairs}

    @staticmethod
    def same_gradients(found: dict[str, Tensor], wanted: dict[str, Tensor], bound: float) -> None:
        """Each parameter's gradient is within `bound`, and not all gradients are zero."""
        assert found.keys() == wanted.keys() and any(bool(g.any()) for g in wanted.values())
        for key, gradient in wanted.items():
            found_distance = Steps.distance(found[key], gradient)
            assert found_distance <= bound * cancelling(key, wanted), f"{key}: {found_distance:.1e}"

    @staticmethod
    def same_draws(a: StepResult, b: StepResult) -> None:
        """Positions and rollouts are equal, token for token."""
        assert torch.equal(a.positions, b.positions)
        assert torch.equal(a.rollouts, b.rollouts)


@pytest.fixture
def steps() -> Steps:
    """See Steps."""
    return Steps()
