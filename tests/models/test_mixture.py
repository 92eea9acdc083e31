"""The mixture in a block: routers, shared experts, and what the routers count for the log."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from refine.models.mixture import (
    Experts,
    Mixture,
    Shared,
    SigmoidRouter,
    SoftmaxRouter,
    routers,
    take_counts,
)  # fmt: skip
from refine.models.recomputation import contexts

D, E, K, I = 8, 6, 2, 5


def mixture(router=None, shared=None, dtype=torch.float64):
    torch.manual_seed(0)
    made = Mixture(D, router or SoftmaxRouter(D, E, K), Experts(D, I, E), shared)
    for parameter in made.parameters():
        nn.init.normal_(parameter, 0.0, 0.5)
    return made.to(dtype)


def expert(made, e, x):
    gate, up = (made.experts.gate_up_proj[e] @ x).chunk(2)
    return made.experts.down_proj[e] @ (F.silu(gate) * up)


def inputs(tokens=23, dtype=torch.float64):
    return torch.randn(tokens, D, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("normalised", [True, False])
def test_softmax_router_and_gated_shared_expert(normalised):
    made = mixture(SoftmaxRouter(D, E, K, normalised), Shared(nn.Linear(D, D, bias=False)))
    assert sorted(name for name, _ in made.named_parameters()) == [
        "experts.down_proj", "experts.gate_up_proj", "gate.weight", "shared_expert.weight", "shared_expert_gate.weight",
    ]  # fmt: skip
    x = inputs()
    for row, y in zip(x, made(x), strict=True):
        p = (made.gate.weight @ row).softmax(0)
        best = p.topk(K).indices.tolist()
        total = sum(p[e] for e in best) if normalised else 1
        expected = sum(p[e] / total * expert(made, e, row) for e in best)
        expected = expected + torch.sigmoid(made.shared_expert_gate.weight[0] @ row) * (made.shared_expert.weight @ row)
        assert torch.allclose(y, expected, rtol=1e-12)


def test_sigmoid_router_and_plain_shared_expert():
    made = mixture(SigmoidRouter(D, E, K, 3, 2, scale=2.5), Shared(nn.Linear(D, D), "shared_experts", None))
    assert not made.gate.e_score_correction_bias.requires_grad
    x = inputs()
    for row, y in zip(x, made(x), strict=True):
        s = torch.sigmoid(made.gate.weight @ row)
        choice = s + made.gate.e_score_correction_bias
        left = choice.view(3, 2).sum(1).topk(2).indices.tolist()
        best = sorted((e for g in left for e in (2 * g, 2 * g + 1)), key=lambda e: -choice[e].item())[:K]
        expected = sum(2.5 * s[e] / sum(s[i] for i in best) * expert(made, e, row) for e in best)
        assert torch.allclose(y, expected + made.shared_experts(row), rtol=1e-12)


def test_without_a_shared_expert():
    made, x = mixture(), inputs()
    found = made.gate(x)
    assert torch.equal(made(x), made.experts(x, found.experts, found.weights))


def test_the_router_computes_in_float32_under_autocast_and_in_16_bits():
    made, x = mixture(dtype=torch.float32), inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = made.gate(x)
        assert torch.equal(found.weights, made.gate(x).weights) and made(x).dtype == torch.bfloat16
    assert torch.equal(found.weights, made.gate(x).weights)
    rounded = made.bfloat16().gate(x.bfloat16())
    assert rounded.weights.dtype == torch.float32
    again = made.float().gate(x.bfloat16().float())
    assert torch.equal(rounded.weights, again.weights)


def test_counts_are_the_tokens_that_training_learns_from_once():
    made, x = mixture().train(), inputs()
    layers = nn.ModuleList([made, mixture(SoftmaxRouter(D, E, 1)).train()])
    assert take_counts(layers) is None
    for layer in layers:
        layer(x)
        layer(x[:4])
    with torch.no_grad():
        layers[0](x)  # a rollout that is sampled
    layers.eval()
    layers[0](x)  # validation
    counted = take_counts(layers)
    load, entropy, tokens = counted.load, counted.entropy, counted.tokens
    assert take_counts(layers) is None
    assert tokens == 27 and load.sum(1).tolist() == [54, 27] and load.shape == (2, E)
    both = torch.cat([x, x[:4]])
    expected = torch.stack([(both[:, None] @ layer.gate.weight.T)[:, 0].softmax(-1) for layer in layers])
    assert torch.allclose(entropy, -(expected * expected.log()).sum((1, 2)))
    assert torch.equal(load[1], F.one_hot(expected[1].argmax(-1), E).sum(0))
    assert len(routers(layers)) == 2 and not entropy.requires_grad


def test_a_pass_that_runs_again_for_the_gradient_is_counted_once():
    made, x = mixture().train(), inputs().requires_grad_()
    y = checkpoint(made, x, use_reentrant=False, context_fn=contexts)
    y.sum().backward()
    counted = take_counts(made)
    assert counted.tokens == 23 and int(counted.load.sum()) == 23 * K


def test_counts_are_neither_saved_nor_cast():
    made = mixture().train()
    made(inputs())
    assert sorted(made.state_dict()) == ["experts.down_proj", "experts.gate_up_proj", "gate.weight"]
    counted = take_counts(made.bfloat16())
    assert counted.load.dtype == torch.int64 and counted.entropy.dtype == torch.float64
