"""Gated DeltaProduct is its formula, written out token by token and step by step, and flash-linear-attention's own."""

import pytest
import torch

import refine.models
from refine.errors import ModelError
from refine.models.delta.mixer import RuleInputs

CONFIG = {
    "model_type": "gated_deltaproduct", "vocab_size": 61, "hidden_size": 20, "intermediate_size": 24, "norm_eps": 1e-5,
    "num_hidden_layers": 2, "num_heads": 3, "head_dim": 5, "expand_v": 1.4, "num_householder": 3, "eos_token_id": None,
    "use_forget_gate": True, "allow_neg_eigval": True,
}  # fmt: skip
VARIANTS = {
    "3 steps": {},
    "1 step": {"num_householder": 1, "allow_neg_eigval": False},
    "2 steps, nothing forgotten, plain": {
        "num_householder": 2,
        **dict.fromkeys(("use_forget_gate", "use_output_gate", "use_short_conv"), False),
    },
}


def layer(formula, w, x, c):
    """The layer on x [T, D]."""
    T, H, K, M = len(x), c["num_heads"], c["head_dim"], c["num_householder"]
    q, k, v = (formula.convolved(w, x, name) for name in "qkv")
    q, k, v = formula.unit(q.view(T, H, K)), formula.unit(k.view(T, M, H, K)), v.view(T, M, H, -1)
    beta = torch.sigmoid(x @ w["b_proj.weight"].T).view(T, M, H) * (1 + c["allow_neg_eigval"])
    decay = torch.ones(T, H, dtype=x.dtype)
    if c["use_forget_gate"]:
        decay = formula.decay(w, x)
    o = torch.zeros(T, H, v.shape[-1], dtype=x.dtype)
    for h in range(H):
        S = torch.zeros(K, v.shape[-1], dtype=x.dtype)
        for t in range(T):
            S = decay[t, h] * S
            for m in range(M):
                S = S + torch.outer(k[t, m, h], beta[t, m, h] * (v[t, m, h] - k[t, m, h] @ S))
            o[t, h] = q[t, h] @ S / K**0.5
    o = formula.rms(o, w["o_norm.weight"], c["norm_eps"])
    if "g_proj.weight" in w:
        o = o * formula.silu(x @ w["g_proj.weight"].T).view(o.shape)
    return o.flatten(1) @ w["o_proj.weight"].T


@pytest.mark.parametrize("length", [1, 5, 131])
@pytest.mark.parametrize("variant", list(VARIANTS))
@torch.no_grad()
def test_hidden_states_are_the_formulas(variant, length, build, tokens, formula):
    config = {**CONFIG, **VARIANTS[variant]}
    model, text = build(config), tokens(1, length)
    expected = formula.hidden_states(model.state_dict(), config, text[0], layer)
    found = model.read(text).hidden[0]
    assert float((found - expected).norm() / expected.norm()) < 1e-10


@pytest.mark.requires_fla
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("forgets", [True, False])
@torch.no_grad()
def test_a_layer_takes_the_steps_of_flash_linear_attentions_reference(forgets, build, formula):
    from fla.ops.gated_delta_product.naive import naive_recurrent_gated_delta_product

    from refine.ops.layout import Layout, Taps

    mixer = build({**CONFIG, "use_forget_gate": forgets}, torch.float32).model.layers[0].mixer
    x = torch.randn(37, 20, generator=torch.Generator().manual_seed(3))
    beta, decay = mixer.rates(x, torch.float32)
    qkv = torch.randn(37, 15), torch.randn(37, 45), torch.randn(37, 63)
    state = torch.randn(1, 3, 5, 7)
    o, states = mixer.apply_rule(qkv, RuleInputs(beta, decay, state, 1, Layout([37]), torch.float32))
    q, k, v = formula.unit(qkv[0].view(1, 37, 3, 5)), formula.unit(qkv[1].view(1, 111, 3, 5)), qkv[2].view(1, 111, 3, 7)
    g = None if decay is None else decay[None]
    expected, last = naive_recurrent_gated_delta_product(
        q, k, v, g, beta.view(1, 111, 3), 5**-0.5, None, state, True, num_householder=3
    )
    assert float((o - expected[0]).norm() / expected.norm()) < 1e-6
    assert float((states.at(Taps([0], [37]).times(3)) - last).norm() / last.norm()) < 1e-6


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_householder", 0),
        ("num_householder", 65),
        ("num_householder", 2.0),
        ("use_forget_gate", "yes"),
        ("expand_v", 0.3),
        ("head_dim", 0),
        ("num_v_heads", 6),
        ("use_gate", True),
        ("conv_bias", True),
        ("attn", {"layers": [2], "num_heads": 2}),
    ],
)
def test_what_is_not_possible_is_refused_by_name(field, value):
    with pytest.raises(ModelError, match=rf"config of gated_deltaproduct: {field}\b") as caught:
        refine.models.from_config({**CONFIG, field: value})
    assert "\n" not in str(caught.value)
