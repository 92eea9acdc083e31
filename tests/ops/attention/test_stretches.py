"""Windows that share a product are as windows one by one: outputs and gradients."""

import pytest
import torch

from refine.ops.attention import shared_windows, stretches
from refine.ops.attention.shared_windows import Windows
from refine.ops.attention.stretches import Stretches, windows_of
from tests.ops.attention.test_shared_windows import HEADS, POOL, RANGES, WIDTH, distance

CASES = {**RANGES, "some without tokens": [(0, 0), (3, 9), (7, 7), (5, 20), (25, 25)]}


def drawn(ranges, new, own, dtype=torch.float64):
    """Queries, own keys and values, the pool's keys and values."""
    torch.manual_seed(0)
    shapes = [(len(ranges), new), (len(ranges), own + new), (len(ranges), own + new), (POOL,), (POOL,)]
    return [torch.randn(*shape, HEADS, WIDTH).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize(("new", "own"), [(1, 0), (5, 0), (4, 3), (1, 30)])
@pytest.mark.parametrize("window", [1, 3, 8, 20])
@pytest.mark.parametrize("where", CASES)
def test_windows_in_stretches_are_windows_one_by_one(where, window, new, own):
    ranges = [(max(start, to - window + 1), to) for start, to in CASES[where]]
    inputs = drawn(ranges, new, own)
    alone = shared_windows.attend(*inputs, Windows(ranges), window)
    weights = torch.arange(alone.numel(), dtype=torch.float64).sin().view(alone.shape)
    expected = torch.autograd.grad((alone * weights).sum(), inputs)
    for scores in (0, 20, 60, 10**6):
        out = shared_windows.attend(*inputs, Stretches(ranges, "cpu", scores), window)
        assert distance(out, alone) <= 1e-12
        for got, wanted in zip(torch.autograd.grad((out * weights).sum(), inputs), expected, strict=True):
            assert distance(got, wanted) <= 1e-12 or (got - wanted).abs().max() < 1e-14


def test_windows_are_joined_in_their_order_as_long_as_little_is_masked():
    ranges = ((0, 8), (2, 10), (30, 38), (31, 39), (33, 33), (90, 98))
    wanted = [(slice(0, 2), 0, 10), (slice(2, 5), 30, 39), (slice(5, 6), 90, 98)]
    assert [(s.windows, s.first, s.last) for s in stretches.joined(ranges, 30)] == wanted
    assert len(stretches.joined(ranges, 0)) == 6 and len(stretches.joined(ranges, 6 * 98)) == 1


@pytest.mark.parametrize(("positions", "new", "most"), [(8, 1, 1), (8, 5, 1), (64, 1, 2), (64, 5, 3)])
def test_few_products_serve_all_positions_of_a_text_of_the_published_size(positions, new, most):
    ends = [(2 * j + 1) * 8192 // positions + (37 * j * j) % 100 for j in range(positions)]
    found = windows_of([(max(0, end - 2047), end) for end in ends], "meta", new)
    assert isinstance(found, Stretches) and 1 <= len(found.stretches) <= most


def test_a_cpu_reads_each_window_by_itself_and_evenly_spaced_ones_are_one_view():
    ranges = [(3, 9), (5, 12), (9, 20)]
    assert type(windows_of(ranges, "cpu", 1)) is Windows and type(windows_of(ranges, "meta", 1)) is Stretches
    assert type(windows_of([(3, 9)] * 4, "meta", 1)) is Windows, "one window is read in the pool"
    assert type(windows_of([(0, 7), (7, 14), (14, 21)], "meta", 1)) is Windows


def test_no_stretch_is_copied(monkeypatch):
    pool = torch.randn(2, 4000, HEADS, WIDTH)
    windows = Stretches([(100 * r, 100 * r + 500 + r) for r in range(8)], "cpu", 3000)
    assert len(windows.stretches) > 1
    storages, product = set(), torch.Tensor.__matmul__

    def watched(a, b):
        storages.add(b.untyped_storage().data_ptr())
        return product(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    scores = windows.times_tokens(torch.randn(HEADS, 8, 5, WIDTH), pool[0])
    windows.mix(scores, pool[1])
    assert storages == {pool.untyped_storage().data_ptr()}


def test_bfloat16_agrees_within_its_rounding():
    ranges = [(0, 19), (3, 22), (10, 25)]
    inputs = drawn(ranges, 5, 0, torch.bfloat16)
    windows = Stretches(ranges, "cpu", 1000)
    out, exact = (shared_windows.attend(*x, windows, 20) for x in (inputs, [x.double() for x in inputs]))
    assert out.dtype == torch.bfloat16 and distance(out.double(), exact) < 0.01
