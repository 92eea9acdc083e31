"""Kimi Linear: hidden states are the published formulas in float64; every spelling of config and tensors is read, the
released one is written; what is not possible is named."""

import json

import pytest
import torch
import transformers

import refine.models
from refine.errors import ModelError
from refine.models.hybrids.kimi_linear_config import KimiLinearConfig

RELEASED = {  # the released 48B model's fields
    "model_type": "kimi_linear", "bos_token_id": 163584, "eos_token_id": 163586, "pad_token_id": 163839,
    "first_k_dense_replace": 1, "head_dim": 72, "hidden_act": "silu", "hidden_size": 2304, "initializer_range": 0.02,
    "intermediate_size": 9216, "kv_lora_rank": 512, "mla_use_nope": True, "model_max_length": 1048576,
    "moe_intermediate_size": 1024, "moe_layer_freq": 1, "moe_renormalize": True,
    "moe_router_activation_func": "sigmoid", "num_attention_heads": 32, "num_expert_group": 1, "num_experts": 256,
    "num_experts_per_token": 8, "num_hidden_layers": 27, "num_key_value_heads": 32, "num_nextn_predict_layers": 0,
    "num_shared_experts": 1, "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0, "routed_scaling_factor": 2.446,
    "tie_word_embeddings": False, "topk_group": 1, "use_cache": True, "use_grouped_topk": True, "v_head_dim": 128,
    "vocab_size": 163840, "dtype": "bfloat16", "transformers_version": "4.56.2",
    "linear_attn_config": {
        "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
        "kda_layers": [1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19, 21, 22, 23, 25, 26],
        "head_dim": 128, "num_heads": 32, "short_conv_kernel_size": 4,
    },
}  # fmt: skip


def rms(x, weight, eps=1e-5):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def unit(x):
    return x / (x.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt()


def silu(x):
    return x * torch.sigmoid(x)


def swiglu(x, gate, up, down):
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def convolution(x, weight):
    W = weight.shape[-1]
    padded = torch.cat([x.new_zeros(W - 1, x.shape[1]), x])
    return silu(sum(padded[i : i + len(x)] * weight[:, 0, i] for i in range(W)))


def linear(w, x, c):
    H, K = c["linear_attn_config"]["num_heads"], c["linear_attn_config"]["head_dim"]
    q, k, v = (convolution(x @ w[f"{n}_proj.weight"].T, w[f"{n}_conv1d.weight"]).view(-1, H, K) for n in "qkv")
    q, k, beta = unit(q), unit(k), torch.sigmoid(x @ w["b_proj.weight"].T)
    raw = (x @ w["f_a_proj.weight"].T @ w["f_b_proj.weight"].T + w["dt_bias"]).view(-1, H, K)
    g = -w["A_log"].exp().view(-1, 1) * torch.log1p(raw.exp())
    gate = (x @ w["g_a_proj.weight"].T @ w["g_b_proj.weight"].T).view(-1, H, K)
    o = torch.zeros_like(v)
    for h in range(H):
        S = x.new_zeros(K, K)
        for t in range(len(x)):
            S = g[t, h].exp()[:, None] * S
            S = S + torch.outer(k[t, h], beta[t, h] * (v[t, h] - k[t, h] @ S))
            o[t, h] = q[t, h] @ S / K**0.5
    return (rms(o, w["o_norm.weight"]) * torch.sigmoid(gate)).flatten(1) @ w["o_proj.weight"].T


def attention(w, x, c):
    A, rank, nope, V = c["num_attention_heads"], c["kv_lora_rank"], c["qk_nope_head_dim"], c["v_head_dim"]
    both = x @ w["kv_a_proj_with_mqa.weight"].T
    latent, shared = rms(both[:, :rank], w["kv_a_layernorm.weight"], 1e-6), both[:, rank:]
    q = (x @ w["q_proj.weight"].T).view(len(x), A, -1)
    made = (latent @ w["kv_b_proj.weight"].T).view(len(x), A, nope + V)
    rows = []
    for t in range(len(x)):
        heads = []
        for a in range(A):
            keys = torch.cat([made[: t + 1, a, :nope], shared[: t + 1]], -1)
            heads.append((keys @ q[t, a] / keys.shape[1] ** 0.5).softmax(0) @ made[: t + 1, a, nope:])
        rows.append(torch.cat(heads))
    return torch.stack(rows) @ w["o_proj.weight"].T


def mixture(w, x, c):
    """Token by token: the best groups by their two best experts, the best experts in them, weighed by their scores."""
    E, n, k = c["num_experts"], c["num_expert_group"], c["num_experts_per_token"]
    out = torch.zeros_like(x)
    for t in range(len(x)):
        s = torch.sigmoid(w["gate.weight"] @ x[t])
        chosen_by = (s + w["gate.e_score_correction_bias"]).view(n, E // n)
        best = sorted(range(n), key=lambda i: -float(chosen_by[i].sort().values[-2:].sum()))[: c["topk_group"]]
        there = [(float(chosen_by[i, j]), i * (E // n) + j) for i in best for j in range(E // n)]
        chosen = [e for _, e in sorted(there, reverse=True)[:k]]
        total = sum(s[e] for e in chosen) + 1e-20
        for e in chosen:
            gate, up = w["experts.gate_up_proj"][e].chunk(2)
            expert = swiglu(x[t : t + 1], gate, up, w["experts.down_proj"][e])[0]
            out[t] += s[e] / total * c.get("routed_scaling_factor", 2.446) * expert
    return out + swiglu(x, *(w[f"shared_experts.{n}_proj.weight"] for n in ("gate", "up", "down")))


def hidden_states(weights, c, tokens):
    x = weights["model.embed_tokens.weight"][tokens]
    for i in range(c["num_hidden_layers"]):
        w = {k.removeprefix(f"model.layers.{i}."): v for k, v in weights.items() if k.startswith(f"model.layers.{i}.")}
        parts = {one: {k.removeprefix(one): v for k, v in w.items() if k.startswith(one)}
                 for one in ("self_attn.", "block_sparse_moe.")}  # fmt: skip
        mixer = attention if "kv_b_proj.weight" in parts["self_attn."] else linear
        x = x + mixer(parts["self_attn."], rms(x, w["input_layernorm.weight"]), c)
        y = rms(x, w["post_attention_layernorm.weight"])
        if parts["block_sparse_moe."]:
            x = x + mixture(parts["block_sparse_moe."], y, c)
        else:
            x = x + swiglu(y, *(w[f"mlp.{n}_proj.weight"] for n in ("gate", "up", "down")))
    return rms(x, weights["model.norm.weight"])


@pytest.mark.parametrize("length", [1, 5, 131])
@torch.no_grad()
def test_hidden_states_are_the_formulas(length, build, configs, tokens):
    layers = {"kda_layers": [1, 2, 3], "full_attn_layers": [4], "num_heads": 4, "head_dim": 8}
    config = {**configs["kimi_linear"], "num_hidden_layers": 4, "linear_attn_config": layers}
    model, text = build(config), tokens(1, length)
    for parameter in (p for name, p in model.named_parameters() if name.endswith("dt_bias")):
        parameter.uniform_(-2, 2)
    assert sum("kv_b_proj" in name for name in model.state_dict()) == 1
    expected = hidden_states(model.state_dict(), config, text[0])
    hidden = model.read(text).hidden[0]
    assert float((hidden - expected).norm() / expected.norm()) < 1e-10


def test_the_released_config_is_read_and_its_model_has_the_released_size():
    with torch.device("meta"):
        model = refine.models.from_config(RELEASED)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(49.1e9, rel=1e-3)
    attending = [i for i, kind in enumerate(model.config.layer_types) if kind == "full_attention"]
    assert attending == [3, 7, 11, 15, 19, 23, 26], "the release counts layers from 1"
    ignored = {"head_dim", "rope_theta", "num_nextn_predict_layers", "transformers_version"}
    saved = model.config.to_dict()
    assert {key: saved.get(key) for key in RELEASED if key not in ignored} == {
        key: value for key, value in RELEASED.items() if key not in ignored
    }


def test_both_spellings_of_a_config_are_one():
    theirs = transformers.KimiLinearConfig(**{k: v for k, v in RELEASED.items() if k != "model_type"}).to_dict()
    one = KimiLinearConfig.of_file(RELEASED).to_dict()
    assert KimiLinearConfig.of_file(theirs).to_dict() == one
    without = {key: value for key, value in theirs.items() if key != "linear_attn_config"}
    assert KimiLinearConfig.of_file(without).to_dict() == one
    by_defaults = KimiLinearConfig.of_file({"model_type": "kimi_linear"})
    assert by_defaults.layer_types == transformers.KimiLinearConfig().layer_types


@torch.no_grad()
def test_a_new_model_is_saved_in_the_released_names_and_transformers_reads_it(theirs, configs, build, tokens, tmp_path):
    from safetensors import safe_open

    model, text = build(configs["kimi_linear"], torch.float32), tokens(2, 40)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    expected = {f"model.layers.1.block_sparse_moe.experts.{e}.w{n}.weight" for e in range(6) for n in (1, 2, 3)}
    assert expected <= names and "model.layers.0.mlp.gate_proj.weight" in names
    assert not any("gate_up_proj" in name for name in names)
    again, report = transformers.KimiLinearForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    logits = again(text).logits
    assert float((logits - model(text).logits).norm() / logits.norm()) < 2e-5
    assert "layer_types" not in json.loads((tmp_path / "config.json").read_text())


LINEAR = {"kda_layers": [1], "full_attn_layers": [2], "num_heads": 2, "head_dim": 8}
REFUSED = [
    ({"mla_use_nope": False}, "mla_use_nope is False: latent attention with positions is not implemented"),
    ({"moe_router_activation_func": "softmax"}, "moe_router_activation_func is 'softmax'"),
    ({"num_key_value_heads": 1}, r"num_key_value_heads is 1: expected 3 \(num_attention_heads\)"),
    ({"num_expert_group": 4}, "num_expert_group is 4: expected a divisor of 6"),
    ({"topk_group": 4}, "topk_group is 4: expected at most 3"),
    ({"num_experts_per_token": 5}, "num_experts_per_token is 5: expected at most the 4 experts"),
    ({"num_experts": -1}, "num_experts is -1"),
    ({"routed_scaling_factor": 0}, "routed_scaling_factor is 0"),
    ({"q_lora_rank": 0}, "q_lora_rank is 0"),
    ({"kv_lora_rank": "x"}, "kv_lora_rank is 'x'"),
    ({"num_nextn_predict_layers": 1}, "num_nextn_predict_layers is 1: only 0 is implemented"),
    ({"attention_dropout": 0.1}, "attention_dropout"),
    ({"gate_lower_bound": -5}, "gate_lower_bound is -5: unknown to kimi_linear"),
    (
        {"linear_attn_config": {**LINEAR, "gate_lower_bound": -5}},
        r"linear_attn_config\.gate_lower_bound is -5: unknown",
    ),
    ({"linear_attn_config": {**LINEAR, "head_dim": 0}}, r"linear_attn_config\.head_dim is 0"),
    (
        {"linear_attn_config": {**LINEAR, "kda_layers": [0]}},
        r"linear_attn_config\.kda_layers is \[0\]: .*counted from 1",
    ),
    ({"linear_attn_config": {**LINEAR, "kda_layers": [1, 2]}}, "expected each layer, 1 .. 2, once in"),
    ({"linear_attn_config": 3}, "linear_attn_config is 3"),
    ({"layer_types": ["full_attention", "linear_attention"]}, r"kda_layers is \[1\]: layer_types has \[2\]"),
    ({"layer_types": "linear"}, "layer_types is 'linear'"),
    (
        {"mlp_layer_types": ["sparse", "dense"]},
        "mlp_layer_types is .*expected a list of 'dense' and then 'sparse' ones",
    ),
    ({"mlp_layer_types": 5}, "mlp_layer_types is 5: expected a list"),
    ({"mlp_layer_types": ["dense"]}, r"mlp_layer_types is \['dense'\]: expected 2 \(num_hidden_layers\) of them"),
    ({"mlp_layer_types": ["dense"] * 2, "num_hidden_layers": "x"}, "mlp_layer_types is"),
    ({"num_hidden_layers": "x"}, "num_hidden_layers is 'x'"),
    ({"num_hidden_layers": 2**40, "linear_attn_config": None}, "num_hidden_layers is 1099511627776: expected at most"),
    ({"linear_attn_config": {"full_attn_layers": [2]}}, "expected each layer, 1 .. 2, once in"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=str)
def test_what_a_config_asks_for_and_is_not_there_is_refused_by_name(change, message, configs):
    with pytest.raises(ModelError, match=message) as caught:
        refine.models.from_config({**configs["kimi_linear"], "vocab_size": 61, "intermediate_size": 48, **change})
    assert "\n" not in str(caught.value)
