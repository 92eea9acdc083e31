"""A result that can be made again is not kept, and gradients stay as they were."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from refine.ops import made_again
from refine.ops.made_again import everything_is_kept, without_keeping
from refine.ops.rms_norm import RMSNorm
from refine.ops.swiglu import swiglu


@pytest.fixture(autouse=True)
def _any_size(monkeypatch):
    monkeypatch.setattr(made_again, "SMALL", 0)


class Together(nn.Module):
    """Two products of one input, as an adapter beside a layer."""

    def __init__(self, width):
        super().__init__()
        self.one, self.other = (nn.Linear(width, 3, bias=bias) for bias in (True, False))

    def forward(self, x):
        return self.one(x) + self.other(x)


def _kept(run):
    """The result of `run`, and the addresses of the tensors that are saved outside of `without_keeping`."""
    kept = []

    def pack(x):
        kept.append(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        return run(), kept


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("module", [nn.Linear(12, 5), nn.Linear(12, 5, bias=False), Together(12)], ids=str)
def test_gradients_are_those_of_the_module_to_the_last_bit(module, view):
    module = module.bfloat16()
    gate, up = (torch.randn(7, 12).bfloat16().requires_grad_() for _ in range(2))
    leaves, results = [gate, up, *module.parameters()], []
    for call in (without_keeping, lambda module, x: module(x)):
        inner = swiglu(gate.view(7, 3, 4), up.view(7, 3, 4)).flatten(1) if view else swiglu(gate, up)
        y = call(module, inner)
        results.append([y, *torch.autograd.grad(y.float().square().sum(), leaves)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_the_result_lives_no_longer_than_its_name(monkeypatch):
    module, made = nn.Linear(12, 5).bfloat16(), []
    gate, up = (torch.randn(7, 12).bfloat16().requires_grad_() for _ in range(2))

    def run(call):
        inner = swiglu(gate, up)
        made.append(inner.data_ptr())
        return call(module, inner)

    _, kept = _kept(lambda: run(without_keeping))
    assert made[-1] not in kept
    _, kept = _kept(lambda: run(lambda module, x: module(x)))
    assert made[-1] in kept
    monkeypatch.setattr(made_again, "SMALL", 100)
    _, kept = _kept(lambda: run(without_keeping))
    assert made[-1] in kept, "small ones are"


def test_several_layers_make_it_once_and_a_second_backward_pass_again(monkeypatch):
    norm, layers = RMSNorm(12, 1e-5), [nn.Linear(12, 5).bfloat16() for _ in range(3)]
    y = norm(torch.randn(7, 12, requires_grad=True), torch.bfloat16)
    kind, times = y.grad_fn._forward_cls, []
    again = kind.again
    monkeypatch.setattr(kind, "again", staticmethod(lambda node: times.append(1) or again(node)))
    loss = sum(without_keeping(layer, y).float().square().sum() for layer in layers)
    del y
    loss.backward(retain_graph=True)
    assert len(times) == 1
    loss.backward()
    assert len(times) == 2


def test_float32_a_bare_tensor_and_reads_without_gradient_are_left_alone():
    layer, x = nn.Linear(12, 5), torch.randn(7, 12, requires_grad=True)
    for given in (x, swiglu(x, x)):
        y, kept = _kept(lambda given=given: without_keeping(layer, given))
        assert torch.equal(y, layer(given)) and given.data_ptr() in kept
    with torch.no_grad():
        assert torch.equal(without_keeping(layer, x), layer(x))


def test_gradient_checkpointing_sees_all_that_is_kept():
    layer, x = nn.Linear(12, 5), torch.randn(7, 12, requires_grad=True)

    def block(x):
        with torch.autocast("cpu", torch.bfloat16):
            return without_keeping(layer, swiglu(x.bfloat16(), x.bfloat16()))

    def contexts():
        return everything_is_kept(), everything_is_kept()

    plain = torch.autograd.grad(block(x).float().sum(), [x, layer.weight])
    y, kept = _kept(lambda: checkpoint(block, x, use_reentrant=False, context_fn=contexts))
    assert len(kept) <= 1  # the input
    found = torch.autograd.grad(y.float().sum(), [x, layer.weight])
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))
