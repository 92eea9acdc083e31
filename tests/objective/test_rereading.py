"""The one-read step and its twin, which reads every prefix again, give the same draws, loss and gradients."""

from __future__ import annotations

import pytest
import torch

from refine.errors import ModelError
from refine.objective import ObjectiveSettings, next_sequence_step
from refine.objective.rereading import Rereading
from refine.objective.rollouts import OneRead

SEEDS = torch.tensor([11, -5, 2**61])
SETTINGS = {
    "defaults": ObjectiveSettings(),
    "hybrid by position": ObjectiveSettings(
        positions=3, rollout_length=4, rollouts=3, reward="hybrid", group="position", temperature=0.8, nsp_weight=1.0
    ),
    "binary, one token": ObjectiveSettings(positions=5, rollout_length=1, rollouts=2, reward="binary", nsp_weight=2.0),
    "uniform": ObjectiveSettings(positions=2, rollout_length=7, selection="uniform", min_prefix=1, ntp_weight=0.0),
}


def check(found, wanted, steps, bound):
    (a, a_gradients), (b, b_gradients) = found, wanted
    steps.same_draws(a, b)
    assert float((a.loss - b.loss).detach().abs()) <= bound * float(b.ntp_loss)  # on-policy the loss is about 0
    for name in ("ntp_loss", "entropy", "log_probs"):
        assert steps.distance(getattr(a, name), getattr(b, name)) <= bound, name
    steps.same_gradients(a_gradients, b_gradients, bound)


def precise(model):
    """A mixture of experts in float64: few rollouts' small gradients differ by 6e-5 there in float32, and by 1e-13 in
    float64."""
    return model.double() if any(name.endswith("mlp.experts") for name, _ in model.named_modules()) else model


@pytest.mark.parametrize("name", SETTINGS)
def test_same_seeds_give_the_same_draws_loss_and_gradients(model, draw_tokens, steps, name):
    found, wanted = steps.both(precise(model), draw_tokens(3, 149), SETTINGS[name], SEEDS)
    assert found[0].valid.sum() >= 6
    check(found, wanted, steps, 1e-5)


@pytest.mark.parametrize("length", [25, 26, 64, 65, 127, 211])
def test_odd_lengths_too(model, draw_tokens, steps, length):
    found, wanted = steps.both(model, draw_tokens(2, length), ObjectiveSettings(rollouts=2, nsp_weight=1), SEEDS[:2])
    assert found[0].valid.any()
    check(found, wanted, steps, 1e-5)


def test_packed_rows_too(model, draw_tokens, steps):
    lengths = [[149], [60, 7, 82], [30, 90]]
    settings = ObjectiveSettings(positions=4, rollouts=2, nsp_weight=1)
    found, wanted = steps.both(model, draw_tokens(3, 149), settings, SEEDS, lengths=lengths)
    assert found[0].positions.shape == (3, 12)
    check(found, wanted, steps, 1e-5)


def test_lengths_that_do_not_fit_are_refused_by_both(model, draw_tokens):
    tokens, lengths = draw_tokens(2, 149), [[149], [150]]
    for read in (OneRead(), Rereading()):
        with pytest.raises(ModelError, match=r"lengths\[1\] is \[150\]"):
            next_sequence_step(model, tokens, ObjectiveSettings(), SEEDS[:2], lengths=lengths, read=read)


def test_in_float64_the_gradients_agree_to_rounding(configs, build, draw_tokens, steps):
    for name in configs:
        settings = ObjectiveSettings(rollouts=2, nsp_weight=5)
        found, wanted = steps.both(build(name, torch.float64), draw_tokens(2, 131), settings, SEEDS[:2])
        check(found, wanted, steps, 1e-12)


def test_given_positions_and_rollouts_are_used_by_both(model, draw_tokens, steps):
    positions = torch.tensor([[7, -1, 100, 7], [140, 33, 32, 1], [-1, -1, -1, -1]])
    rollouts = draw_tokens(3, 4 * 2 * 5, seed=9).view(3, 4, 2, 5)
    settings = ObjectiveSettings(rollouts=2, nsp_weight=1)
    found, wanted = steps.both(model, draw_tokens(3, 149), settings, SEEDS, positions=positions, rollouts=rollouts)
    check(found, wanted, steps, 1e-5)
    valid = positions >= 0
    assert torch.equal(found[0].positions, positions) and torch.equal(found[0].valid, valid)
    assert torch.equal(found[0].rollouts[valid], rollouts[valid])
    for kind in found[0].rewards:
        assert torch.allclose(found[0].rewards[kind], wanted[0].rewards[kind], atol=1e-5)


def test_a_further_update_on_the_same_rollouts_agrees(model, draw_tokens, steps):
    settings, tokens = ObjectiveSettings(rollouts=2, nsp_weight=1), draw_tokens(3, 149)
    first, _ = steps.gradients(model, tokens, settings, SEEDS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    found, wanted = steps.both(model, tokens, settings, SEEDS, reuse=first)
    assert float((found[0].ratio - 1).abs().max()) > 0.01
    check(found, wanted, steps, 1e-5)


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_agrees_within_its_rounding(model, draw_tokens, steps, autocast):
    tokens, settings = draw_tokens(2, 149), ObjectiveSettings(rollouts=2, nsp_weight=1)
    fixed = {"positions": torch.tensor([[30, 61, 90]] * 2), "rollouts": draw_tokens(2, 30, seed=3).view(2, 3, 2, 5)}
    _, wanted = steps.gradients(model, tokens, settings, SEEDS[:2], **fixed)
    model = model if autocast else model.to(torch.bfloat16)
    found, twin = steps.both(model, tokens, settings, SEEDS[:2], autocast=autocast, **fixed)
    assert found[0].loss.dtype == torch.float32
    assert steps.distance(found[0].ntp_loss, twin[0].ntp_loss) <= 5e-3
    together, apart, exact = (
        torch.cat([g.flatten().double() for g in x.values()]) for x in (found[1], twin[1], wanted)
    )
    rounding = steps.distance(apart, exact)  # the twin's own distance between bfloat16 and float32
    assert rounding < 0.25
    assert steps.distance(together, exact) <= 1.5 * rounding + 1e-3
