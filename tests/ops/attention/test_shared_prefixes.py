"""Attention over shared prefixes is attention over copies of them, without one."""

import pytest
import torch

from refine.ops.attention import places, shared_prefixes
from refine.ops.layout import Layout

POOL, WIDTH = 40, 8
ROWS = {  # ranges in the pool, own tokens before, new tokens of each row
    "one row": ([(0, 17)], [0], [5]),
    "equal rows, one after the other": ([(0, 10), (10, 20), (30, 40)], [2, 2, 2], [1, 1, 1]),
    "evenly apart": ([(3, 10), (13, 20), (23, 30)], [2, 2, 2], [3, 3, 3]),
    "rollouts of nested prefixes": ([(0, 7), (0, 7), (0, 20), (0, 20)], [0] * 4, [5] * 4),
    "prefixes that end near each other": ([(3, 9), (3, 30), (3, 12), (3, 9), (3, 31), (3, 3)], [2] * 6, [3] * 6),
    "shared out of order": ([(0, 7), (4, 30), (0, 7), (4, 30), (9, 9)], [1, 0, 1, 4, 0], [2, 3, 2, 3, 6]),
    "nothing remembered": ([(0, 0), (5, 5)], [0, 0], [4, 1]),
    "a long piece": ([(2, 40)], [3], [70]),
}


def distance(a, b):
    a, b = a.detach(), b.detach()
    return float((a.double() - b.double()).norm() / (b.double().norm() if b.any() else 1))


def make(which, heads, dtype=torch.float64):
    ranges, before, new = ROWS[which]
    torch.manual_seed(0)
    layout, counts = Layout(new), [b + n for b, n in zip(before, new, strict=True)]
    sizes = [(layout.tokens, heads[0]), *[(sum(counts), heads[1])] * 2, *[(POOL, heads[1])] * 2]
    inputs = [torch.randn(*size, WIDTH, dtype=dtype, requires_grad=True) for size in sizes]
    return layout, ranges, counts, inputs


@pytest.mark.parametrize(("heads", "window", "block"), [
    ((4, 4), None, 1 << 21), ((4, 2), None, 300), ((6, 1), None, 1 << 21), ((4, 2), 4, 1 << 21), ((4, 2), 25, 1500),
    ((4, 4), 1, 1),
])  # fmt: skip
@pytest.mark.parametrize("masked", [0, 20, 1 << 12])
@pytest.mark.parametrize("which", ROWS)
def test_it_is_attention_over_copies_with_the_same_gradients(which, masked, heads, window, block, monkeypatch):
    monkeypatch.setitem(places.BLOCK, "cpu", block)
    monkeypatch.setitem(places.MASKED, "cpu", masked)
    layout, ranges, counts, inputs = make(which, heads)
    q, own, pool = inputs[0], inputs[1:3], inputs[3:]
    out = shared_prefixes.attend(q, own, pool, places.Places(layout, ranges, counts), window)
    expected = shared_prefixes.plain(q, own, pool, layout, ranges, counts, window)
    assert distance(out, expected) <= 1e-12
    weights = torch.arange(out.numel(), dtype=torch.float64).sin().view(out.shape)
    pairs = (torch.autograd.grad((x * weights).sum(), inputs) for x in (out, expected))
    for got, wanted in zip(*pairs, strict=True):
        assert distance(got, wanted) <= 1e-11 or (got - wanted).abs().max() < 1e-12


def test_no_prefix_is_copied(monkeypatch):
    """Every product with a prefix reads the pool's own storage, and nothing as long as tokens × prefix is kept."""
    pool = [torch.randn(5000, 2, WIDTH) for _ in range(2)]
    ranges = [(0, 1000 + 7 * (r // 4)) for r in range(32)]
    layout = Layout([5] * 32)
    q, *own = (torch.randn(160, n, WIDTH) for n in (4, 2, 2))
    read, product = [], torch.Tensor.__matmul__

    def watched(a, b):
        read.append(b)
        return product(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    found = places.Places(layout, ranges, [5] * 32)
    shared_prefixes.attend(q, own, pool, found)
    long = {x.untyped_storage().data_ptr() for x in read if max(x.shape) >= 1000}
    assert long == {x.untyped_storage().data_ptr() for x in pool}


def test_bfloat16_agrees_within_its_rounding():
    layout, ranges, counts, inputs = make("shared out of order", (4, 2), torch.bfloat16)
    found = places.Places(layout, ranges, counts)
    out, exact = (shared_prefixes.attend(x[0], x[1:3], x[3:], found) for x in (inputs, [x.double() for x in inputs]))
    assert out.dtype == torch.bfloat16 and distance(out, exact) < 0.004
    out.float().sum().backward()
    assert {x.grad.dtype for x in inputs} == {torch.bfloat16}
