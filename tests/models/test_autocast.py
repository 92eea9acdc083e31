"""Under autocast bfloat16 reads the linear layers' inputs and nothing else, and backward() may be called inside it."""

import pytest
import torch

from refine.ops import made_again


@pytest.fixture(autouse=True)
def _nothing_is_too_small(monkeypatch):
    """These models are small, and results are made again in the backward pass all the same."""
    monkeypatch.setattr(made_again, "SMALL", 0)


def gradients(model, loss_of, inside):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model)
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def labelled(model, text):
    return model(text, labels=text).loss


def tapped(model, text):
    after = model.read(text, tappable=True).tap(torch.tensor([[20, 64], [3, 90]]))
    return model.read(text.repeat(2, 1)[:, :5], after).hidden.square().sum()


@pytest.mark.parametrize("loss_of", [labelled, tapped])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_backward_pass_is_the_same_inside_the_region_and_outside(
    name, configs, build, tokens, checkpointing, loss_of
):
    model, text = build(configs[name], torch.float32), tokens(2, 131)
    same(model, checkpointing, lambda model: loss_of(model, text))


@pytest.mark.parametrize("options", [{"use_muon": True, "attn_qk_norm": True}, {"w0_w2_low_rank": 3, "use_muon": True}])
def test_with_muon_and_low_rank_weights_too(configs, build, tokens, options):
    model, text = build({**configs["lact"], **options}, torch.float32), tokens(2, 131)
    same(model, False, lambda model: labelled(model, text))


def same(model, checkpointing, loss_of):
    model.model.gradient_checkpointing = checkpointing
    inside, outside = (gradients(model, loss_of, where) for where in (True, False))
    assert inside.keys() == outside.keys() and len(inside) > 10
    for key, gradient in outside.items():
        assert torch.equal(inside[key], gradient), key


def test_a_tapped_memory_is_the_same_inside_the_region_and_outside(name, configs, build, tokens, compare):
    model, text, at = build(configs[name], torch.float32), tokens(2, 131), torch.tensor([[20, 64], [3, 131]])
    with torch.autocast("cpu", torch.bfloat16):
        reading = model.read(text, tappable=True)
        inside = reading.tap(at)
    compare.memories(reading.tap(at), inside)
    states = [
        x.dtype for layer in inside.layers for key, x in layer.tensors().items() if key in ("state", "gates", "out")
    ]
    assert set(states) == {torch.float32}
