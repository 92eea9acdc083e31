"""Attention over windows of another text is attention over copies of them."""

import pytest
import torch

from refine.ops.attention import shared_windows
from refine.ops.attention import window as window_attention
from refine.ops.layout import Layout

HEADS, WIDTH, POOL = 2, 8, 25
RANGES = {
    "no window": [(0, 0)] * 3,
    "overlapping, shared in order": [(3, 9), (3, 9), (5, 12), (5, 12)],
    "one after the other": [(0, 7), (7, 14), (14, 21)],
    "one after the other, the first ones shorter": [(4, 7), (8, 14), (14, 21)],
    "out of order, shared by some": [(2, 7), (7, 14), (20, 21), (2, 7)],
    "one row": [(11, 25)],
}


def distance(a, b):
    a, b = a.detach(), b.detach()
    return float((a - b).norm() / (b.norm() if b.any() else 1))


@pytest.mark.parametrize(("new", "own"), [(1, 0), (5, 0), (4, 3), (1, 30)])
@pytest.mark.parametrize("window", [1, 3, 8, 20])
@pytest.mark.parametrize("where", RANGES)
def test_windows_in_a_pool_are_as_copies_of_them_with_the_same_gradients(where, window, new, own):
    ranges = [(max(start, to - window + 1), to) for start, to in RANGES[where]]
    torch.manual_seed(0)
    shapes = [(len(ranges), new), (len(ranges), own + new), (len(ranges), own + new), (POOL,), (POOL,)]
    q, own_k, own_v, pool_k, pool_v = inputs = [
        torch.randn(*shape, HEADS, WIDTH, dtype=torch.float64, requires_grad=True) for shape in shapes
    ]
    out = shared_windows.attend(*inputs, shared_windows.Windows(ranges), window)
    rows = []
    for r, (start, to) in enumerate(ranges):
        keys, values = torch.cat([pool_k[start:to], own_k[r]]), torch.cat([pool_v[start:to], own_v[r]])
        rows.append(window_attention.attend(q[r], keys, values, Layout([new]), [to - start + own], window, "plain"))
    expected = torch.stack(rows)
    assert distance(out, expected) <= 1e-10
    weights = torch.arange(out.numel(), dtype=torch.float64).sin().view(out.shape)
    pairs = (torch.autograd.grad((x * weights).sum(), inputs) for x in (out, expected))
    for got, wanted in zip(*pairs, strict=True):
        assert distance(got, wanted) <= 1e-10 or (got - wanted).abs().max() < 1e-12


def test_no_window_is_copied(monkeypatch):
    """Every product with the pool reads the pool's own storage."""
    pool = torch.randn(2, 4000, HEADS, WIDTH)
    ranges = [(100 * r, 100 * r + 500 + r) for r in range(8)]
    windows = shared_windows.Windows(ranges)
    storages = set()
    product = torch.Tensor.__matmul__

    def watched(a, b):
        storages.add(b.untyped_storage().data_ptr())
        return product(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    windows.times_tokens(torch.randn(8, HEADS, 5, WIDTH), pool[0])
    windows.mix(torch.randn(8, HEADS, 5, 507), pool[1])
    assert storages == {pool.untyped_storage().data_ptr()}


def test_bfloat16_agrees_within_its_rounding():
    torch.manual_seed(0)
    inputs = [
        torch.randn(*shape, HEADS, WIDTH, dtype=torch.bfloat16) for shape in ((2, 5), (2, 5), (2, 5), (POOL,), (POOL,))
    ]
    windows = shared_windows.Windows([(0, 19), (3, 22)])
    out, exact = (shared_windows.attend(*x, windows, 20) for x in (inputs, [x.double() for x in inputs]))
    assert out.dtype == torch.bfloat16 and distance(out.double(), exact) < 0.01
