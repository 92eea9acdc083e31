"""What a block keeps for its backward pass stays under its bound; the table of docs/training.md has these figures."""

import contextlib

import pytest
import torch

from benchmarks import saved_bytes
from benchmarks.saved_bytes import block_of, by_line, held, stand_ins

BOUNDS = {  # bytes a token and layer, in units of D
    ("DeltaNet", "torch"): 57.5,
    ("DeltaNet", "kernels"): 31.5,
    ("Gated DeltaNet", "torch"): 64.5,
    ("Gated DeltaNet", "kernels"): 36.5,
    ("LaCT", "torch"): 82.5,
    ("LaCT with Muon", "torch"): 103.0,
}


@pytest.mark.parametrize(("kind", "by"), list(BOUNDS))
def test_a_block_keeps_no_more_than_its_bound_and_autograd_keeps_all_of_it(kind, by):
    torch.manual_seed(0)
    block = block_of(kind)
    with stand_ins() if by == "kernels" else contextlib.nullcontext():
        kept, lines = held(block), by_line(block)
    assert BOUNDS[kind, by] - 2 < kept <= BOUNDS[kind, by], lines.most_common()
    assert sum(lines.values()) == pytest.approx(kept, abs=0.2), lines.most_common()


def test_what_is_kept_is_counted(monkeypatch):
    """The input and the output are not; the float32 tensor between two functions is 4 bytes."""

    def reading(function):
        return lambda block, tokens: function(block(torch.ones(tokens, saved_bytes.WIDTH)))

    block = torch.nn.Linear(saved_bytes.WIDTH, saved_bytes.WIDTH, bias=False)
    for function, expected in ((lambda y: y, 0), (lambda y: y.exp().sin(), 4)):
        monkeypatch.setattr(saved_bytes, "read", reading(function))
        assert held(block) == pytest.approx(expected, abs=0.05)
