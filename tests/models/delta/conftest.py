"""fla's models written out from their formulas, on a state dict in published names; each test brings the mixer's."""

import types

import pytest
import torch


def rms(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def silu(x):
    return x * torch.sigmoid(x)


def unit(x):
    return x / (x.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt()


def convolved(w, x, name):
    """x [T, D] -> SiLU of the causal convolution of its projection [T, F]."""
    y = x @ w[f"{name}_proj.weight"].T
    if f"{name}_conv1d.weight" not in w:
        return silu(y)
    weight = w[f"{name}_conv1d.weight"]
    padded = torch.cat([y.new_zeros(weight.shape[-1] - 1, y.shape[1]), y])
    return silu(sum(padded[i : i + len(y)] * weight[:, 0, i] for i in range(weight.shape[-1])))


def decay(w, x):
    """x [T, D] -> [T, J]: by how much each token lets the state decay."""
    return torch.exp(-w["A_log"].exp() * torch.log1p((x @ w["a_proj.weight"].T + w["dt_bias"]).exp()))


def hidden_states(weights, c, tokens, layer):
    """weights, config, tokens [T] -> states after the final norm [T, D]. layer: formula, weights, x [T, D], config ->
    [T, D], the mixer."""
    x = weights["model.embeddings.weight"][tokens]
    for i in range(c["num_hidden_layers"]):
        w = {n.removeprefix(f"model.layers.{i}."): y for n, y in weights.items() if n.startswith(f"model.layers.{i}.")}
        inner = {n.removeprefix("attn."): y for n, y in w.items() if n.startswith("attn.")}
        x = x + layer(FORMULA, inner, rms(x, w["attn_norm.weight"], c["norm_eps"]), c)
        y = rms(x, w["mlp_norm.weight"], c["norm_eps"])
        y = silu(y @ w["mlp.gate_proj.weight"].T) * (y @ w["mlp.up_proj.weight"].T)
        x = x + y @ w["mlp.down_proj.weight"].T
    return rms(x, weights["model.norm.weight"], c["norm_eps"])


FORMULA = types.SimpleNamespace(
    rms=rms, silu=silu, unit=unit, convolved=convolved, decay=decay, hidden_states=hidden_states
)


@pytest.fixture
def formula():
    """What the formulas of all families share."""
    return FORMULA
