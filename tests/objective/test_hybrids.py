"""A step on a hybrid with fla's `attn`, or frozen attention: one read is reading again; sampled is what is scored."""

from __future__ import annotations

import pytest
import torch

from refine.objective import ObjectiveSettings, next_sequence_step
from refine.training.freezing import freeze

SEEDS = torch.tensor([4, 5, 6])
FLA = {
    "model_type": "delta_net", "hidden_size": 32, "num_hidden_layers": 3, "num_heads": 2,
    "attn": [{"layers": [0], "num_heads": 4, "num_kv_heads": 1, "window_size": 24}, {"layers": [2], "num_heads": 2}],
}  # fmt: skip
MODELS = ["qwen3_5", "qwen3_5_moe", "olmo_hybrid", "kimi_linear", "delta_net with attn"]


@pytest.fixture(params=MODELS)
def name(request):
    """A hybrid of each kind, by its name or its config."""
    return FLA if "attn" in request.param else request.param


@pytest.mark.parametrize("checkpointing", [False, True])
def test_in_float64_sampled_and_scored_log_probabilities_are_one(name, build, draw_tokens, checkpointing):
    """vllm-project/vllm#55792, NVIDIA-NeMo/RL#4243."""
    model = build(name, torch.float64).train()
    model.model.gradient_checkpointing = checkpointing
    settings = ObjectiveSettings(rollouts=4, group="position", temperature=0.8)
    packed = next_sequence_step(model, draw_tokens(3, 149), settings, SEEDS, lengths=[[149], [60, 89], [100]])
    assert packed.rollout_tokens and float(packed.log_prob_gap) < 1e-12


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("n", [1, 4])
def test_the_tapped_gradient_is_that_of_reading_again(name, build, draw_tokens, steps, dtype, bound, n):
    settings = ObjectiveSettings(rollouts=n, nsp_weight=1, positions=4)
    lengths = [[50, 81], [131]]
    found, wanted = steps.both(build(name, dtype), draw_tokens(2, 131), settings, SEEDS[:2], lengths=lengths)
    steps.same_draws(found[0], wanted[0])
    steps.same_gradients(found[1], wanted[1], bound)


def test_frozen_attention_changes_no_other_gradient(name, build, draw_tokens, steps):
    settings, text = ObjectiveSettings(rollouts=2), draw_tokens(2, 90)
    whole, frozen = build(name, torch.float64), build(name, torch.float64)
    stopped = {id(parameter) for parameter in freeze(frozen, "attention", "freeze")}
    _, wanted = steps.gradients(whole, text, settings, SEEDS[:2])
    next_sequence_step(frozen, text, settings, SEEDS[:2]).loss.backward()
    left = {key: p for key, p in frozen.named_parameters() if id(p) not in stopped and p.requires_grad}
    assert stopped and len(left) < len(wanted)
    for key, parameter in left.items():
        assert steps.distance(parameter.grad, wanted[key]) < 1e-10, key
