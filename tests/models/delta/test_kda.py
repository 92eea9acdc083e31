"""Kimi Delta Attention in fla's format: hidden states are the published formulas in float64, both gates are fla's."""

import pytest
import torch

import refine.models
from refine.errors import ModelError
from refine.models.delta.kda import FlaKimiDelta, KDAConfig


def rms(x, weight):
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def unit(x):
    return x / (x.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt()


def silu(x):
    return x * torch.sigmoid(x)


def convolution(x, weight):
    W = weight.shape[-1]
    padded = torch.cat([x.new_zeros(W - 1, x.shape[1]), x])
    return silu(sum(padded[i : i + len(x)] * weight[:, 0, i] for i in range(W)))


def kda(w, x, c):
    """The layer, token by token: x [T, D], parameters in fla's names."""
    H, K = c["num_heads"], c["head_dim"]
    J, V = c.get("num_v_heads") or H, int(K * c.get("expand_v", 1))
    short = c.get("use_short_conv", True)
    q, k, v = (
        convolution(x @ w[f"{n}_proj.weight"].T, w[f"{n}_conv1d.weight"])
        if short
        else silu(x @ w[f"{n}_proj.weight"].T)
        for n in "qkv"
    )
    q, k, v = unit(q.view(-1, H, K)), unit(k.view(-1, H, K)), v.view(-1, J, V)
    beta = torch.sigmoid(x @ w["b_proj.weight"].T) * (2 if c.get("allow_neg_eigval") else 1)
    raw = (x @ w["f_proj.0.weight"].T @ w["f_proj.1.weight"].T + w["dt_bias"]).view(-1, J, K)
    rate = w["A_log"].exp()[:, None]
    bound = c.get("lower_bound")
    g = -rate * torch.log1p(raw.exp()) if bound is None else bound * torch.sigmoid(rate * raw)
    gate = (x @ w["g_proj.0.weight"].T @ w["g_proj.1.weight"].T + w["g_proj.1.bias"]).view(-1, J, V)
    o = torch.zeros_like(v)
    for j in range(J):
        S = x.new_zeros(K, V)
        for t in range(len(x)):
            key, query = k[t, j * H // J], q[t, j * H // J]
            S = g[t, j].exp()[:, None] * S
            S = S + torch.outer(key, beta[t, j] * (v[t, j] - key @ S))
            o[t, j] = query @ S / K**0.5
    return (rms(o, w["o_norm.weight"]) * torch.sigmoid(gate)).flatten(1) @ w["o_proj.weight"].T


def hidden_states(weights, c, tokens):
    x = weights["model.embeddings.weight"][tokens]
    for i in range(c["num_hidden_layers"]):
        w = {k.removeprefix(f"model.layers.{i}."): v for k, v in weights.items() if k.startswith(f"model.layers.{i}.")}
        inner = {name.removeprefix("attn."): value for name, value in w.items() if name.startswith("attn.")}
        x = x + kda(inner, rms(x, w["attn_norm.weight"]), c)
        y = rms(x, w["mlp_norm.weight"])
        up = silu(y @ w["mlp.gate_proj.weight"].T) * (y @ w["mlp.up_proj.weight"].T)
        x = x + up @ w["mlp.down_proj.weight"].T
    return rms(x, weights["model.norm.weight"])


FIELDS = {
    "unbounded": {},
    "bounded": {"lower_bound": -5.0},
    "bounded, safe, grouped and wide values, negative": {
        "lower_bound": -3,
        "safe_gate": True,
        "num_v_heads": 4,
        "expand_v": 1.5,
        "allow_neg_eigval": True,
    },
    "without convolution": {"use_short_conv": False},
}


@pytest.mark.parametrize("length", [1, 5, 131])
@pytest.mark.parametrize("which", FIELDS)
@torch.no_grad()
def test_hidden_states_are_the_formulas(which, length, build, configs, tokens):
    """lightseekorg/tokenspeed#847: the bounded gate is no clamped softplus."""
    config = {**configs["kda"], **FIELDS[which]}
    model, text = build(config), tokens(1, length)
    for parameter in (p for name, p in model.named_parameters() if name.endswith(("dt_bias", "g_proj.1.bias"))):
        parameter.uniform_(-2, 2)
    expected = hidden_states(model.state_dict(), config, text[0])
    hidden = model.read(text).hidden[0]
    assert float((hidden - expected).norm() / expected.norm()) < 1e-10


@pytest.mark.requires_fla
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bound", [None, -5.0])
@torch.no_grad()
def test_gates_are_flash_linear_attentions_own(bound):
    from fla.ops.kda.gate import naive_kda_gate, naive_kda_lowerbound_gate

    torch.manual_seed(0)
    mixer = FlaKimiDelta(KDAConfig(hidden_size=32, num_heads=2, head_dim=8, num_v_heads=4, lower_bound=bound))
    mixer.reset_decay()
    mixer.dt_bias.uniform_(-2, 2)
    x = torch.randn(1, 30, 32)
    raw = mixer.raw_decay(x).unflatten(-1, (4, 8))
    more = {} if bound is None else {"lower_bound": bound}
    expected = (naive_kda_gate if bound is None else naive_kda_lowerbound_gate)(raw, mixer.A_log, mixer.dt_bias, **more)
    torch.testing.assert_close(mixer.rates(x[0], torch.float32)[1], expected[0])


@pytest.mark.parametrize("safe", [False, True])
def test_initial_decay_is_flash_linear_attentions(safe):
    torch.manual_seed(0)
    fields = {"hidden_size": 64, "num_heads": 4, "head_dim": 32, "num_hidden_layers": 1, "vocab_size": 8}
    model = refine.models.from_config({"model_type": "kda", **fields, "safe_gate": safe, "lower_bound": -5})
    mixer = model.model.layers[0].mixer
    rates, steps = mixer.A_log.exp(), torch.nn.functional.softplus(mixer.dt_bias)
    assert (rates == 1).all() if safe else (rates > 1).all() and (rates < 16).all() and len(rates.unique()) == 4
    assert (steps > 0.0009).all() and (steps < 0.11).all() and steps.std() > 0.01


REFUSED = [
    ({"safe_gate": True}, "safe_gate is True: it needs a lower_bound"),
    ({"lower_bound": 5}, "lower_bound is 5: expected a number below 0, or null for the unbounded gate"),
    ({"lower_bound": "low"}, "lower_bound is 'low'"),
    ({"safe_gate": 1, "lower_bound": -5}, "safe_gate is 1"),
    ({"use_gate": True}, "use_gate is True: unknown to kda"),
    ({"num_v_heads": 3}, "num_v_heads is 3: expected a multiple of 2"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=str)
def test_what_a_config_asks_for_and_is_not_there_is_refused_by_name(change, message, configs):
    with pytest.raises(ModelError, match=message) as caught:
        refine.models.from_config({**configs["kda"], "vocab_size": 61, **change})
    assert "\n" not in str(caught.value)


def test_strong_decay_has_finite_gradients(build, configs, tokens):
    """huggingface/transformers#48455."""
    model, text = build(configs["kda"], torch.float32), tokens(2, 70)
    with torch.no_grad():
        model.model.layers[0].mixer.dt_bias[::3] = 60.0
        model.model.layers[0].mixer.A_log.zero_()
    model(text, labels=text).loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
