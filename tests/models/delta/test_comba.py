"""Comba is its formula, written out token by token, and what flash-linear-attention's kernels compute."""

import os
import subprocess
import sys

import pytest
import torch

import refine.models
from refine.errors import ModelError, SettingError
from refine.models.delta.mixer import RuleInputs
from refine.ops.layout import Layout, Taps

CONFIG = {
    "model_type": "comba", "vocab_size": 61, "hidden_size": 20, "intermediate_size": 24, "norm_eps": 1e-5,
    "num_hidden_layers": 2, "num_heads": 2, "num_v_heads": 4, "head_dim": 5, "expand_v": 1.4, "eos_token_id": None,
}  # fmt: skip
PLAIN = {"num_v_heads": None, **dict.fromkeys(("use_output_gate", "use_short_conv"), False)}
# all three change nothing in fla
WITHOUT_EFFECT = {"use_output_correction": False, "use_inner_decay": False, "correction_factor": 0.02}


@pytest.fixture
def shaken(build):
    """Makes a model whose D and decay matter; keys are short, so that the epsilon of unit length does, too."""

    def make(config, dtype=torch.float64):
        model = build(config, dtype)
        with torch.no_grad():
            for block in model.model.layers:
                block.mixer.D.uniform_(-2, 2)
                block.mixer.decay.uniform_(-3, 3)
                block.mixer.k_proj.weight.mul_(0.02)
        return model

    return make


def layer(formula, w, x, c):
    """The layer on x [T, D]."""
    T, H, K = len(x), c["num_heads"], c["head_dim"]
    J = c["num_v_heads"] or H
    q, k = (formula.convolved(w, x, name).view(T, H, K) for name in "qk")
    v = formula.convolved(w, x, "v").view(T, J, -1)
    p = k * torch.sigmoid(w["decay"])[:, None]
    q = formula.unit(q - w["D"][:, None] * p)
    k, p = formula.unit(k), formula.unit(p)
    beta, decay = torch.sigmoid(x @ w["b_proj.weight"].T), formula.decay(w, x)
    o = torch.zeros_like(v)
    for j in range(J):
        h, S = j * H // J, torch.zeros(K, v.shape[-1], dtype=x.dtype)
        for t in range(T):
            S = decay[t, j] * S + torch.outer(k[t, h], beta[t, j] * (v[t, j] - p[t, h] @ S))
            o[t, j] = q[t, h] @ S / K**0.5
    o = formula.rms(o, w["o_norm.weight"], c["norm_eps"])
    if "g_proj.weight" in w:
        o = o * torch.sigmoid(x @ w["g_proj.weight"].T).view(o.shape)
    return o.flatten(1) @ w["o_proj.weight"].T


@pytest.mark.parametrize("length", [1, 5, 131])
@pytest.mark.parametrize("variant", [{}, PLAIN, WITHOUT_EFFECT], ids=["grouped", "plain", "without effect"])
@torch.no_grad()
def test_hidden_states_are_the_formulas(variant, length, shaken, tokens, formula):
    config = {**CONFIG, **variant}
    model, text = shaken(config), tokens(1, length)
    expected = formula.hidden_states(model.state_dict(), config, text[0], layer)
    found = model.read(text).hidden[0]
    assert float((found - expected).norm() / expected.norm()) < 1e-10


def _inputs(dtype, strong=1.0):
    """q, k, v after the convolutions, beta, log decay and state of two documents of 70 and 3 tokens."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    decay = -strong * torch.rand(73, 4, generator=generator, dtype=dtype)
    beta = torch.rand(73, 4, generator=generator, dtype=dtype)
    convolved = normal(73, 10), normal(73, 10), normal(73, 28)
    return convolved, beta.requires_grad_(), decay.requires_grad_(), normal(2, 4, 5, 7)


def _token_by_token(mixer, formula, convolved, beta, decay, state):
    """o [N, J, V] and the last state of each document [2, J, K, V]."""
    q, k, v = (x.unflatten(-1, (heads, -1)) for x, heads in zip(convolved, (2, 2, 4), strict=True))
    p = k * torch.sigmoid(mixer.decay)[:, None]
    q, k, p = formula.unit(q - mixer.D[:, None] * p), formula.unit(k), formula.unit(p)
    q, k, p = (x.repeat_interleave(2, 1) for x in (q, k, p))
    outputs, ends = [], []
    for g, (start, end) in enumerate(((0, 70), (70, 73))):
        s = state[g]
        for t in range(start, end):
            error = v[t] - torch.einsum("jk,jkv->jv", p[t], s)
            s = s * decay[t].exp()[:, None, None] + torch.einsum("jk,jv->jkv", k[t], beta[t][:, None] * error)
            outputs.append(torch.einsum("jk,jkv->jv", q[t], s) / 5**0.5)
        ends.append(s)
    return torch.stack(outputs), torch.stack(ends)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-11), (torch.float32, 2e-5)], ids=str)
@pytest.mark.parametrize("strong", [1.0, 90.0, 400.0])
def test_outputs_states_and_gradients_are_the_formulas_however_strong_the_decay(dtype, bound, strong, shaken, formula):
    mixer = shaken(CONFIG, dtype).model.layers[0].mixer
    convolved, beta, decay, state = _inputs(dtype, strong)
    layout = Layout([70, 3])
    o, states = mixer.apply_rule(convolved, RuleInputs(beta, decay, state, 1, layout, dtype))
    ends = states.at(Taps.ends(layout))
    expected, expected_ends = _token_by_token(mixer, formula, convolved, beta, decay, state)
    leaves = [*convolved, beta, decay, state, mixer.D, mixer.decay]
    weights = torch.randn_like(o), torch.randn_like(ends)
    found, wanted = (
        [a, b, *torch.autograd.grad((a * weights[0]).sum() + (b * weights[1]).sum(), leaves)]
        for a, b in ((o, ends), (expected, expected_ends))
    )
    for one, other in zip(found, wanted, strict=True):
        one, other = one.detach(), other.detach()
        assert one.isfinite().all() and float((one - other).norm() / other.norm()) < bound


@pytest.mark.requires_fla
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_a_layer_is_flash_linear_attentions_chunked_reference(shaken, formula):
    from fla.ops.comba.naive import naive_chunk_comba

    mixer = shaken(CONFIG, torch.float32).model.layers[0].mixer
    convolved, beta, decay, state = _inputs(torch.float32)
    o, states = mixer.apply_rule(convolved, RuleInputs(beta, decay, state, 1, Layout([70, 3]), torch.float32))
    q, k, v = (x[None, :70].unflatten(-1, (heads, -1)) for x, heads in zip(convolved, (2, 2, 4), strict=True))
    p = k * torch.sigmoid(mixer.decay)[:, None]
    q, k, p = formula.unit(q - mixer.D[:, None] * p), formula.unit(k), formula.unit(p)
    q, k, p = (x.repeat_interleave(2, 2) for x in (q, k, p))
    expected, last = naive_chunk_comba(
        q, k, v, p, decay[None, :70], beta[None, :70], initial_state=state[:1], output_final_state=True
    )
    assert float((o[:70] - expected[0]).norm() / expected.norm()) < 1e-5
    assert float((states.at(Taps([0], [70])) - last).norm() / last.norm()) < 1e-5


INTERPRETED = """
import torch
from fla.ops.comba import fused_recurrent_comba
torch.manual_seed(0)
q, k, p = (torch.nn.functional.normalize(torch.randn(1, 7, 2, 16), dim=-1).half() for _ in range(3))
v, g, beta = torch.randn(1, 7, 2, 16).half(), -2 * torch.rand(1, 7, 2), torch.rand(1, 7, 2).half()
s = torch.randn(1, 2, 16, 16)
found, _ = fused_recurrent_comba(q=q, k=k, p=p, v=v, g=g, beta=beta, initial_state=s, output_final_state=True)
for t in range(7):
    error = v[:, t].float() - torch.einsum("bhk,bhkv->bhv", p[:, t].float(), s)
    s = s * g[:, t].exp()[..., None, None]
    s = s + torch.einsum("bhk,bhv->bhkv", k[:, t].float(), beta[:, t].float()[..., None] * error)
    o = torch.einsum("bhk,bhkv->bhv", q[:, t].float(), s) / 4
    assert float((found[:, t].float() - o).norm() / o.norm()) < 1e-2
print("the same")
"""


@pytest.mark.slow
@pytest.mark.requires_fla
def test_flash_linear_attentions_kernel_removes_before_it_forgets_under_tritons_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", INTERPRETED]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0 and "the same" in run.stdout, run.stderr[-2000:]


def test_kernels_are_not_trusted_with_it(shaken, tokens, monkeypatch):
    model = shaken(CONFIG, torch.float32)
    monkeypatch.setenv("REFINE_KERNELS", "fla")
    with pytest.raises(SettingError, match=r"REFINE_KERNELS is 'fla', but only PyTorch computes Comba here") as caught:
        model.read(tokens(1, 5))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"), [("num_v_heads", 3), ("allow_neg_eigval", True), ("conv_bias", True), ("use_gate", False)]
)
def test_what_is_not_possible_is_refused_by_name(field, value):
    with pytest.raises(ModelError, match=rf"config of comba: {field}\b") as caught:
        refine.models.from_config({**CONFIG, field: value})
    assert "\n" not in str(caught.value)
