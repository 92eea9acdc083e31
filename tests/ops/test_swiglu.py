"""silu(gate) · up in blocks is the formula, and its gradients are autograd's."""

import pytest
import torch
from torch.nn.functional import silu

from refine.ops import row_groups
from refine.ops.swiglu import swiglu, swiglu_joined


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 3), (37, 6), (2, 3, 5, 4)], ids=str)
def test_value_and_gradients_are_the_formulas(shape, dtype, monkeypatch):
    monkeypatch.setattr(row_groups, "CACHED_NUMBERS", 40)  # several blocks and a rest
    torch.manual_seed(0)
    gate_up = torch.randn(*shape[:-1], 2 * shape[-1], dtype=dtype, requires_grad=True)
    upstream = torch.randn(shape, dtype=dtype)
    gate, up = gate_up.chunk(2, -1)
    expected = silu(gate) * up
    wanted = torch.autograd.grad(expected, gate_up, upstream, retain_graph=True)[0]
    for found in (swiglu_joined(gate_up), swiglu(gate, up)):
        assert torch.equal(found, expected)
        assert torch.equal(torch.autograd.grad(found, gate_up, upstream, retain_graph=True)[0], wanted)


def test_only_the_inputs_are_kept_for_the_backward_pass():
    gate, up = (torch.randn(5, 4, requires_grad=True) for _ in range(2))
    kept = []

    def pack(x):
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        swiglu(gate, up)
    assert {x.data_ptr() for x in kept} == {gate.data_ptr(), up.data_ptr()}
