"""Documents that share the state they start from read as with a state each, to the last bit, and hold it once."""

from __future__ import annotations

import pytest
import torch

from refine.ops.delta_rule import rule
from refine.ops.layout import Layout, Taps

D, N, H, J, K, V = 3, 4, 1, 2, 5, 6


def inputs(tokens: int, gated: bool, dtype: torch.dtype) -> list[torch.Tensor | None]:
    made = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made, dtype=dtype)

    rows = D * N * tokens
    q, k, v = draw(rows, H, K), torch.nn.functional.normalize(draw(rows, H, K), dim=-1), draw(rows, J, V)
    decay = -torch.nn.functional.softplus(draw(rows, J)) if gated else None
    found = [q, k, v, draw(rows, J).sigmoid(), decay, draw(D, J, K, V)]
    return [None if x is None else x.requires_grad_() for x in found]


def held_by(run) -> tuple[torch.Tensor, int]:
    """The result of `run`, and the bytes of distinct storage that its graph holds."""
    storages = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = run()
    return result, sum(storages.values())


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tokens", [1, 7, 64, 70])
def test_results_and_gradients_are_those_of_a_state_each(tokens, dtype, gated):
    """70 tokens are two chunks, which are read with a state each."""
    layout = Layout([tokens] * (D * N))
    taps = Taps(list(range(D * N)), [1 + g % tokens for g in range(D * N)])
    found = []
    for sharing in (N, 1):
        given = inputs(tokens, gated, dtype)
        state = given[-1] if sharing == N else given[-1].index_select(0, torch.arange(D).repeat_interleave(N))
        o, states = rule.read(*given[:-1], state, layout, sharing)
        after = [states.at(Taps.ends(layout)), states.at(taps)]
        weight = torch.arange(o.numel(), dtype=dtype).view(o.shape).sin()
        loss = (o * weight).sum() + sum(x.square().sum() for x in after)
        grads = torch.autograd.grad(loss, [x for x in given if x is not None], retain_graph=True)
        alone = torch.autograd.grad((rule.read(*given[:-1], state, layout, sharing)[0] * weight).sum(), given[-1])
        found.append([o, *after, *grads[:-1], *alone, grads[-1]])
    *equal, (one, other) = zip(*found, strict=True)
    assert all(torch.equal(a, b) for a, b in equal)
    atol = 1e-5 if dtype == torch.float32 else 1e-12  # added in another order
    assert torch.allclose(one, other, rtol=1e-5, atol=atol)


def test_the_graph_holds_each_state_once():
    wide = 64

    def run(sharing: int) -> torch.Tensor:
        layout, rows = Layout([2] * 16), 32
        x = [torch.randn(rows, 1, wide, requires_grad=True) for _ in range(3)]
        beta = torch.rand(rows, 1, requires_grad=True)
        state = torch.randn(16 // sharing, 1, wide, wide, requires_grad=True)
        return rule.read(*x, beta, None, state, layout, sharing)[0]

    state = 4 * wide * wide
    (_, shared), (_, apart) = held_by(lambda: run(16)), held_by(lambda: run(1))
    assert apart - shared >= 15 * state and shared < 8 * state
