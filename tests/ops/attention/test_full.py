"""Full attention of fresh documents is the formula, document by document, whatever their lengths."""

import pytest
import torch

from refine.ops.attention import full
from refine.ops.layout import Layout

LENGTHS = {"one document": [67], "equal ones": [9, 9, 9], "unequal ones": [1, 30, 2, 64], "one token": [1]}


def distance(a, b):
    a, b = a.detach(), b.detach()
    return float((a - b).norm() / (b.norm() if b.any() else 1))


@pytest.mark.parametrize("window", [None, 1, 5, 40])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("which", LENGTHS)
def test_every_document_is_attended_alone_with_the_formulas_gradients(which, heads, window):
    torch.manual_seed(0)
    layout = Layout(LENGTHS[which])
    q, k, v = inputs = [
        torch.randn(layout.tokens, n, 8, dtype=torch.float64, requires_grad=True)
        for n in (heads[0], heads[1], heads[1])
    ]
    out = full.attend(*inputs, layout, window)
    alone = zip(*(x.split(layout.lengths) for x in (q, k, v)), strict=True)
    expected = torch.cat([full.plain(*one, window) for one in alone])
    assert distance(out, expected) <= 1e-12
    weights = torch.arange(out.numel(), dtype=torch.float64).sin().view(out.shape)
    pairs = (torch.autograd.grad((x * weights).sum(), inputs) for x in (out, expected))
    for got, wanted in zip(*pairs, strict=True):
        assert distance(got, wanted) <= 1e-12 or (got - wanted).abs().max() < 1e-12


def test_a_document_keeps_its_bits_when_another_changes():
    torch.manual_seed(0)
    layout = Layout([13, 40])
    inputs = [torch.randn(53, n, 8) for n in (4, 2, 2)]
    changed = [x.clone() for x in inputs]
    for x in changed:
        x[:13] += 1
    one, other = full.attend(*inputs, layout), full.attend(*changed, layout)
    assert torch.equal(one[13:], other[13:]) and not torch.equal(one[:13], other[:13])
