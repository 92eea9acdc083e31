"""Each token's experts and weights, against routers written out for one token."""

import pytest
import torch

from refine.ops.mixture import routing


def logits(tokens=37, experts=12):
    return torch.randn(tokens, experts, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("k", [1, 3, 12])
def test_softmax(k, normalised):
    given = logits().requires_grad_()
    found = routing.by_softmax(given, k, normalised)
    for n, row in enumerate(given):
        p = row.exp() / row.exp().sum()
        best = sorted(range(12), key=lambda e: -float(p[e]))[:k]
        expected = torch.stack([p[e] for e in best])
        assert found.experts[n].tolist() == best
        assert torch.allclose(found.weights[n], expected / expected.sum() if normalised else expected, rtol=1e-13)
    assert torch.allclose(found.probabilities.sum(-1), torch.ones(37, dtype=torch.float64))
    # a single expert has weight 1 whatever the logits: no gradient
    gradient = torch.autograd.grad(found.weights.square().sum(), given)[0]
    assert float(gradient.abs().max()) < 1e-12 if normalised and k == 1 else gradient.any()


def sigmoid_of_one(row, bias, k, groups, best_groups):
    """Experts and unscaled weights of one token, by loops."""
    s = 1 / (1 + (-row).exp())
    choice = (s + bias).tolist()
    size = len(choice) // groups
    members = [list(range(g * size, (g + 1) * size)) for g in range(groups)]
    score = [sum(sorted((choice[e] for e in group), reverse=True)[:2]) for group in members]
    best = sorted(range(groups), key=lambda g: -score[g])[:best_groups]
    allowed = [e for g in best for e in members[g]]
    chosen = sorted(allowed, key=lambda e: -choice[e])[:k]
    return chosen, torch.stack([s[e] for e in chosen])


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize(("groups", "best_groups"), [(1, 1), (4, 2), (4, 4), (12, 3), (3, 1)])
def test_sigmoid(groups, best_groups, normalised):
    # a bias that decides who is chosen and changes no weight; some choices are below 0
    bias = torch.linspace(-1.5, 0.5, 12, dtype=torch.float64)[torch.randperm(12)]
    given = logits().requires_grad_()
    found = routing.by_sigmoid(given, bias, 3, groups, best_groups, normalised, scale=2.446)
    for n, row in enumerate(given):
        chosen, expected = sigmoid_of_one(row, bias, 3, groups, best_groups)
        expected = expected / (expected.sum() + 1e-20) if normalised else expected
        assert found.experts[n].tolist() == chosen
        assert torch.allclose(found.weights[n], expected * 2.446, rtol=1e-13)
    assert torch.allclose(found.probabilities.sum(-1), torch.ones(37, dtype=torch.float64))
    assert torch.autograd.grad(found.weights.square().sum(), given)[0].any()
