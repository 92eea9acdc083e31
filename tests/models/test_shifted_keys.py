"""Keys that start as those of the tokens before: what a model writes is what came after them."""

from __future__ import annotations

import pytest
import torch

import refine.models
from refine.errors import SettingError
from refine.models.attention.mixer import Attention
from refine.models.shifted_keys import BACK, shift_keys
from refine.settings import load_recipe
from tests.models.configs import CONFIGS, VOCABULARY


def convolutions(mixer):
    """The weights [F, W] of q, k and v; Qwen3.5 has them in one convolution."""
    if hasattr(mixer, "conv1d"):
        return mixer.conv1d.weight[:, 0].split(mixer.widths)
    return [getattr(mixer, f"{one}_conv1d").weight[:, 0] for one in "qkv"]


def found_again(fast, values):
    """Share of the rows of `fast` [N, V] that are nearest to their own row of `values` [N, V]."""
    likeness = torch.corrcoef(torch.cat([fast - fast.mean(0), values - values.mean(0)]))[: len(fast), len(fast) :]
    return (likeness.argmax(1) == torch.arange(len(fast))).float().mean()


@pytest.mark.parametrize(
    "name",
    ["delta_net", "gated_deltanet", "kda", "gated_deltaproduct", "comba", "qwen3_5", "olmo_hybrid", "kimi_linear"],
)
def test_a_key_is_of_the_tokens_before_those_of_its_query(name):
    model = refine.models.from_config({**CONFIGS[name], "vocab_size": VOCABULARY})
    shift_keys(model)
    mixers = [block.mixer for block in model.model.layers if hasattr(block.mixer, "conv_size")]
    assert mixers
    for mixer in mixers:
        q, k, v = convolutions(mixer)
        for weight in (q, k, v):
            assert torch.equal(weight.sum(1), torch.ones(len(weight))) and weight.abs().sum() == len(weight)
        width, q = q.shape[1], q.repeat(len(k) // len(q), 1)  # for each of a token's keys
        assert torch.equal(k[:, :-1], q[:, 1:]), "each key channel lies one token before its query's"
        assert set(q.argmax(1).tolist()) == set(range(1, width)), "of the last tokens"
        assert set(v.argmax(1).tolist()) == {width - 1}, "the token itself"


def test_a_qwen_keeps_a_text_of_a_thousand_tokens():
    """Of what a token writes, 1000 tokens later a good part is there; with the usual values nothing is."""
    torch.manual_seed(0)
    model = refine.models.from_config({**CONFIGS["qwen3_5"], "vocab_size": VOCABULARY})

    def kept():
        mixer = model.model.layers[0].mixer
        x = torch.randn(1000, model.config.hidden_size)
        return mixer.rates(x, torch.float32)[1].sum(0).exp()

    with torch.no_grad():
        assert kept().max() < 1e-3
        shift_keys(model)
        assert kept().min() > 0.1


def test_a_qwen_reads_what_came_after_the_same_tokens(monkeypatch, checkout):
    """Random tokens, twice, read by the shipped hybrid as it was new: what is read is like what came after them."""
    torch.manual_seed(0)
    settings = load_recipe(checkout / "refine/settings/recipes/hybrid.yaml").model
    model = refine.models.from_config({**settings.config, "vocab_size": 512})
    shift_keys(model)
    mixer, count, read = model.model.layers[0].mixer, 96, {}
    rule = mixer._rule

    def watched(q, k, v, *rest):
        o, states = rule(q, k, v, *rest)
        read.update(values=v[:, 0], fast=o[:, 0])
        return o, states

    monkeypatch.setattr(mixer, "_rule", watched)
    with torch.no_grad():
        model.read(torch.randperm(512)[:count].repeat(2)[None])
    assert found_again(read["fast"][count + 4 : -1], read["values"][5:count]) > 0.3, "by chance 1 in 91"


def test_attention_of_a_hybrid_starts_as_it_is():
    model = refine.models.from_config({**CONFIGS["qwen3_5"], "vocab_size": VOCABULARY})
    attends = [block.mixer for block in model.model.layers if isinstance(block.mixer, Attention)]
    before = [{name: value.clone() for name, value in mixer.state_dict().items()} for mixer in attends]
    shift_keys(model)
    assert before
    for mixer, values in zip(attends, before, strict=True):
        assert all(torch.equal(value, values[name]) for name, value in mixer.state_dict().items())


def test_lact_reads_what_came_after_the_same_tokens():
    """Random tokens, twice: what the second layer reads is nearest to the value written after the same tokens."""
    torch.manual_seed(0)
    config = {
        **CONFIGS["lact"],
        "vocab_size": 512,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attn_heads": 4,
        "num_lact_heads": 1,
        "inter_multi": 4,
        "lact_chunk_size": 16,
        "window_size": 16,
        "qkv_bias": True,
        "qkv_silu": False,
        "attn_qk_norm": False,
        "ttt_nope": True,
        "ttt_prenorm": True,
        "use_momentum": False,
        "use_muon": False,
        "w0_w2_low_rank": -1,
        "initializer_range": 0.05,
    }
    model = refine.models.from_config(config)
    shift_keys(model)
    mixer, count, read = model.model.layers[1].attn, 96, {}
    mixer.ttt_norm.register_forward_hook(lambda _, given, __: read.update(fast=given[0]))
    mixer.qkv.register_forward_hook(lambda _, __, out: read.update(values=out.chunk(3, dim=-1)[2]))
    tokens = torch.randperm(512)[:count].repeat(2)
    with torch.no_grad():
        model.read(tokens[None])
    fast, values = (read[name].view(2 * count, -1) for name in ("fast", "values"))
    assert found_again(fast[count + 4 : -1], values[5:count]) > 0.3, "by chance 1 in 91"


def test_a_head_of_lact_looks_its_distance_back():
    model = refine.models.from_config(
        {
            **CONFIGS["lact"],
            "vocab_size": VOCABULARY,
            "hidden_size": 128,
            "num_attn_heads": 4,
            "num_lact_heads": 1,
            "attn_qk_norm": False,
            "qkv_bias": True,
            "ttt_nope": True,
        }
    )
    shift_keys(model)
    mixer = model.model.layers[0].attn
    projected = mixer.projected(torch.randn(40, 128), mixer.turns(torch.arange(100, 140), torch.float32))
    scores = torch.einsum("nhk,mhk->hnm", projected.queries, projected.window["keys"]) / 32**0.5
    weights = scores.masked_fill(torch.ones(40, 40).triu(1) > 0, -torch.inf).softmax(-1)
    for head, distance in enumerate(BACK):
        assert (weights[head].diagonal(-distance) > 0.9).all()


@pytest.mark.parametrize("other", [{"qkv_bias": False}, {"ttt_nope": False}, {"attn_qk_norm": True}])
def test_a_lact_that_cannot_shift_is_refused(other):
    config = {**CONFIGS["lact"], "vocab_size": VOCABULARY, "qkv_bias": True, "ttt_nope": True, **other}
    with pytest.raises(SettingError, match="qkv_bias, ttt_nope"):
        shift_keys(refine.models.from_config(config))


def test_a_model_without_short_convolutions_is_refused():
    with pytest.raises(SettingError, match="no short convolutions"):
        shift_keys(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


def test_convolutions_that_see_no_other_token_cannot_shift():
    config = {**CONFIGS["qwen3_5"], "vocab_size": VOCABULARY, "linear_conv_kernel_dim": 1}
    with pytest.raises(SettingError, match="no short convolutions"):
        shift_keys(refine.models.from_config(config))
