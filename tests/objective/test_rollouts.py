"""Rollouts come from one read and from the distribution that is scored, and get the right rewards."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from refine.objective import ObjectiveSettings, next_sequence_step
from refine.objective.documents import Documents, RolloutStarts
from refine.objective.rollouts import OneRead

SEEDS = torch.tensor([4, 5, 6])


def count_tokens(model):
    """Counts from now on the tokens that pass each linear layer of the blocks, by layer name."""
    counts: dict[str, int] = defaultdict(int)
    for name, module in model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _, given, name=name: counts.__setitem__(
                    name, counts[name] + given[0].numel() // given[0].shape[-1]
                )
            )
    return counts


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("c", "k", "n"), [(8, 5, 1), (3, 2, 4), (8, 1, 1)])
def test_the_text_is_read_once_and_each_rollout_twice(model, draw_tokens, c, k, n, checkpointing):
    if checkpointing:
        model.model.gradient_checkpointing = True
    counts, length = count_tokens(model.train()), 331
    result = next_sequence_step(
        model, draw_tokens(1, length), ObjectiveSettings(positions=c, rollout_length=k, rollouts=n), SEEDS[:1]
    )
    taps = int(result.valid.sum())
    assert taps == c
    # with checkpointing a tap reads again the tokens since the last kept state, and those of a convolution before them
    chunk = 2 * 64 + 3 if checkpointing else 0
    for name, counted in counts.items():
        assert length <= counted <= length + 2 * k * taps * n + chunk * taps, name
    mlp = next(counted for name, counted in counts.items() if name.endswith(("mlp.gate_proj", ".shared_expert_gate")))
    assert mlp == length + (2 * k - 1) * taps * n


def test_without_a_next_sequence_loss_the_text_is_all_that_is_read(model, draw_tokens):
    counts = count_tokens(model)
    result = next_sequence_step(model, draw_tokens(2, 100), ObjectiveSettings(nsp_weight=0), SEEDS[:2])
    assert set(counts.values()) == {200}
    assert not result.valid.any() and result.loss == result.ntp_loss and result.nsp_loss == 0


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_at_sampling_and_at_training_agree(model, draw_tokens, temperature):
    settings = ObjectiveSettings(rollouts=4, temperature=temperature)
    result = next_sequence_step(model, draw_tokens(3, 149), settings, SEEDS)
    assert 0 < float(result.log_prob_gap) < 5e-5
    assert (result.ratio[result.valid] == 1).all() and result.clip_fraction == 0


@pytest.mark.parametrize("autocast", [True, False])
def test_in_bfloat16_they_agree_within_its_rounding(model, draw_tokens, autocast):
    model = model if autocast else model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = next_sequence_step(model, draw_tokens(3, 149), ObjectiveSettings(rollouts=4), SEEDS)
    assert float(result.log_prob_gap) < 0.25
    assert torch.isfinite(result.loss)


def test_tokens_are_sampled_from_the_very_distribution_that_is_scored(model, draw_tokens):
    """A chi-square test of many first tokens against softmax(logits / temperature); every token occurs."""
    tokens, n, temperature = draw_tokens(1, 60), 20_000, 1.3
    documents = Documents((1, 60), None)
    starts = RolloutStarts.at(torch.tensor([[31]]), documents, 1)
    reader = OneRead()(model, tokens, documents, tappable=True)
    drawn, log_probs = reader.sample(starts, n, 1, torch.arange(n), temperature)
    wanted = torch.softmax(model.logits(reader.hidden[0, 30]).detach().double() / temperature, -1)
    counts = torch.bincount(drawn.flatten(), minlength=wanted.shape[0])
    expected = wanted * n
    degrees = len(wanted) - 1
    assert float(((counts - expected) ** 2 / expected).sum()) < degrees + 5 * (2 * degrees) ** 0.5
    assert (counts > 0).all()
    assert torch.allclose(log_probs.flatten().double(), wanted.log()[drawn.flatten()], atol=1e-5)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_rollout_equal_to_the_text_scores_one_one_and_two(model, draw_tokens, dtype, bound):
    """Also where the rollout crosses a chunk border of the delta rule (64) or of LaCT (20), or starts at one."""
    model, tokens, k = model.to(dtype), draw_tokens(2, 149), 7
    positions = torch.tensor([[1, 14, 18, 19, 20, 21, 38, 40, 59, 60, 63, 64, 65, 142]] * 2)
    text = torch.stack([torch.stack([row[t : t + k] for t in positions[0]]) for row in tokens])
    result = next_sequence_step(
        model, tokens, ObjectiveSettings(rollout_length=k), SEEDS[:2], positions=positions, rollouts=text[:, :, None]
    )
    assert (result.rewards["binary"] == 1).all()
    assert float((result.rewards["cosine"] - 1).abs().max()) < bound
    assert float((result.rewards["hybrid"] - 2).abs().max()) < bound
    if dtype == torch.float32:  # all rewards are equal to rounding
        assert not result.advantages.any()


def test_another_rollout_scores_less(model, draw_tokens):
    result = next_sequence_step(model, draw_tokens(2, 149), ObjectiveSettings(rollouts=3), SEEDS[:2])
    sampled = {kind: reward[result.valid] for kind, reward in result.rewards.items()}
    assert float(sampled["cosine"].max()) < 0.999 and float(sampled["binary"].max()) < 1
    assert torch.allclose(sampled["hybrid"], sampled["cosine"] + sampled["binary"])
