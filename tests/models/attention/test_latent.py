"""Latent attention is its formula, token by token; both of its forms are one; taps are views of the read."""

import pytest
import torch
from torch import nn

from refine.errors import ModelError
from refine.models.attention.latent import LatentAttention, LatentMemory, LatentOptions
from refine.models.token_mixer import Keep, LayerMemory
from refine.ops.layout import Layout, Taps

PLAIN = {"hidden": 24, "heads": 3, "rank": 10, "own_key": 8, "shared_key": 4, "value": 6}
OPTIONS = {
    "plain": {},
    "values wider than keys": {"value": 20},
    "queries of a latent, biases": {"query_rank": 9, "bias": True},
}


def rms(x, weight):
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def formula(layer, x, one):
    """x [T, D] of one document, head by head."""
    q = (
        layer.q_proj(x)
        if one.query_rank is None
        else layer.q_b_proj(rms(layer.q_a_proj(x), layer.q_a_layernorm.weight))
    )
    both = layer.kv_a_proj_with_mqa(x)
    latent, shared = rms(both[:, : one.rank], layer.kv_a_layernorm.weight), both[:, one.rank :]
    q = q.view(len(x), one.heads, -1)
    made = layer.kv_b_proj(latent).view(len(x), one.heads, -1)
    rows = []
    for t in range(len(x)):
        heads = []
        for a in range(one.heads):
            keys = torch.cat([made[: t + 1, a, : one.own_key], shared[: t + 1]], -1)
            weights = (keys @ q[t, a] / (one.own_key + one.shared_key) ** 0.5).softmax(0)
            heads.append(weights @ made[: t + 1, a, one.own_key :])
        rows.append(torch.cat(heads))
    return layer.o_proj(torch.stack(rows))


@pytest.fixture(params=list(OPTIONS))
def layer(request):
    torch.manual_seed(0)
    made = LatentAttention(LatentOptions(**{**PLAIN, **OPTIONS[request.param]})).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.uniform_(-1, 1)
    return made


@torch.no_grad()
def test_it_is_the_formula_in_one_read_and_in_pieces(layer):
    x = torch.randn(30, 24, dtype=torch.float64)
    expected = [formula(layer, part, layer.options) for part in x.split([19, 11])]
    y, trace = layer(x, Layout([19, 11]), None, Keep.ALL)
    assert float((y - torch.cat(expected)).norm() / y.norm()) < 1e-12
    memory = trace.tap(Taps([0, 1], [12, 9]), None)
    rest = torch.cat([x[12:19], x[28:]])
    after, _ = layer(rest, Layout([7, 2], [12, 9]), memory, Keep.ENDS)
    assert float((after - torch.cat([expected[0][12:], expected[1][9:]])).norm() / after.norm()) < 1e-12


def test_gradients_of_a_read_after_a_tap_are_those_of_one_read(layer):
    x = torch.randn(20, 24, dtype=torch.float64, requires_grad=True)
    leaves = [x, *layer.parameters()]
    whole, _ = layer(x, Layout([20]), None, Keep.ALL)
    expected = torch.autograd.grad(whole[13:].square().sum(), leaves)
    _, trace = layer(x[:15], Layout([15]), None, Keep.ALL)
    after, _ = layer(x[13:], Layout([7], [13]), trace.tap(Taps([0], [13]), None), Keep.ENDS)
    for one, other in zip(torch.autograd.grad(after.square().sum(), leaves), expected, strict=True):
        assert float((one - other).norm()) <= 1e-10 * float(other.norm()) + 1e-12


@torch.no_grad()
def test_taps_share_the_reads_tensor_and_hold_rank_and_shared_key_of_a_token(layer):
    x = torch.randn(20, 24, dtype=torch.float64)
    _, trace = layer(x, Layout([20]), None, Keep.ALL)
    memory = trace.tap(Taps([0, 0], [7, 20]), None)
    place = trace.tokens.tokens["latents"].data_ptr()
    assert memory.nbytes == 20 * 14 * 8 + 8 * 2 and "latents of 10 and keys of 4" in layer.options.text
    for other in (memory, memory.repeat(3), memory.map(torch.Tensor.detach), memory.select(torch.tensor([1]))):
        assert type(other) is LatentMemory and other.prefix.tokens["latents"].data_ptr() == place
    _, later = layer(x[:4], Layout([2, 2], [7, 20]), memory, Keep.ENDS)
    kept = later.tap(Taps.ends(Layout([2, 2])), None)
    assert type(kept) is LatentMemory and kept.prefix.tokens["latents"].data_ptr() == place and kept.counts == (9, 22)


@torch.no_grad()
def test_a_saved_memory_is_read_as_before(layer):
    x = torch.randn(20, 24, dtype=torch.float64)
    _, trace = layer(x, Layout([12, 8]), None, Keep.ALL)
    memory = trace.tap(Taps([0, 1], [7, 8]), None)
    again = LayerMemory.kinds["LatentMemory"].from_tensors({key: y.clone() for key, y in memory.tensors().items()})
    layout = Layout([5, 5], [7, 8])
    assert torch.equal(layer(x[:10], layout, again, Keep.ENDS)[0], layer(x[:10], layout, memory, Keep.ENDS)[0])
    with pytest.raises(ModelError, match="lacks latents"):
        LatentMemory.from_tensors({"keys": x, "count": torch.tensor([1])})


@torch.no_grad()
def test_adapters_of_the_matrices_of_keys_and_values_count_after_a_memory_too(layer):
    class Adapted(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.more = base, nn.Linear(base.in_features, base.out_features, bias=False).double()

        def forward(self, x):
            return self.base(x) + self.more(x)

    layer.kv_b_proj = Adapted(layer.kv_b_proj)
    x = torch.randn(20, 24, dtype=torch.float64)
    whole, trace = layer(x, Layout([20]), None, Keep.ALL)
    after, _ = layer(x[9:], Layout([11], [9]), trace.tap(Taps([0], [9]), None), Keep.ENDS)
    assert float((after - whole[9:]).norm() / after.norm()) < 1e-12
