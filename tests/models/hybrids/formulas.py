"""Hybrids written out from their published formulas, token by token in float64, on a state dict in published names."""

import torch


def rms(x, weight, eps):
    """x / rms(x) * weight over the last dimension."""
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def unit(x):
    """x / |x|."""
    return x / (x.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt()


def silu(x):
    return x * torch.sigmoid(x)


def delta(q, k, v, beta, g):
    """q, k [T, H, K], v [T, J, V], beta, g [T, J] -> [T, J, V]; value head j uses key head j // (J / H)."""
    T, J, H = len(q), v.shape[1], q.shape[1]
    out = torch.zeros_like(v)
    for j in range(J):
        S = q.new_zeros(q.shape[2], v.shape[2])
        for t in range(T):
            key, query = k[t, j * H // J], q[t, j * H // J]
            S = g[t, j].exp() * S
            S = S + torch.outer(key, beta[t, j] * (v[t, j] - key @ S))
            out[t, j] = query @ S / q.shape[2] ** 0.5
    return out


def convolution(x, weight):
    """x [T, F], weight [F, 1, W] -> SiLU of the causal convolution."""
    W = weight.shape[-1]
    padded = torch.cat([x.new_zeros(W - 1, x.shape[1]), x])
    return silu(sum(padded[i : i + len(x)] * weight[:, 0, i] for i in range(W)))


def turned(x, theta, channels):
    """x [T, A, K]: rotate-half rotary positions on the first `channels` of K."""
    half, y = channels // 2, x.clone()
    for t in range(len(x)):
        angle = t * theta ** (-torch.arange(half, dtype=x.dtype) * 2 / channels)
        a, b = x[t, :, :half], x[t, :, half:channels]
        y[t, :, :half], y[t, :, half:channels] = a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()
    return y


def attention(q, k, v):
    """q [T, A, K], k, v [T, h, K] -> [T, A K]."""
    rows = []
    for t in range(len(q)):
        heads = []
        for a in range(q.shape[1]):
            own = a // (q.shape[1] // k.shape[1])
            heads.append((k[: t + 1, own] @ q[t, a] / q.shape[2] ** 0.5).softmax(0) @ v[: t + 1, own])
        rows.append(torch.cat(heads))
    return torch.stack(rows)


def mlp(w, x):
    return (silu(x @ w["mlp.gate_proj.weight"].T) * (x @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T


def mixture(w, x, c):
    """Qwen's mixture, expert by expert of each token; experts stand apart."""
    rows = []
    for row in x:
        p = torch.exp(w["mlp.gate.weight"] @ row)
        p = p / p.sum()
        best = sorted(range(c["num_experts"]), key=lambda e: -float(p[e]))[: c["num_experts_per_tok"]]
        total = sum(p[e] for e in best) if c.get("norm_topk_prob", True) else 1
        y = torch.sigmoid(w["mlp.shared_expert_gate.weight"] @ row) * swiglu(w, "mlp.shared_expert.", row)
        for e in best:
            y = y + p[e] / total * swiglu(w, f"mlp.experts.{e}.", row)
        rows.append(y)
    return torch.stack(rows)


def swiglu(w, where, row):
    gate, up, down = (w[f"{where}{one}_proj.weight"] for one in ("gate", "up", "down"))
    return down @ (silu(gate @ row) * (up @ row))


def next_linear(w, x, c):
    """Qwen3-Next: for each key head its q, k, v and z, and its b and a, row by row."""
    H, J, K, V = (c[f"linear_{n}"] for n in ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim"))
    rows = {one: [] for one in "qkvzba"}
    share, place, small = J // H, 0, 0
    for _ in range(H):
        for one, width in (("q", K), ("k", K), ("v", share * V), ("z", share * V)):
            rows[one].append(w["in_proj_qkvz.weight"][place : place + width])
            place += width
        for one in "ba":
            rows[one].append(w["in_proj_ba.weight"][small : small + share])
            small += share
    q, k, v, z, b, a = (torch.cat(rows[one]) for one in "qkvzba")
    apart = {"in_proj_qkv": torch.cat([q, k, v]), "in_proj_z": z, "in_proj_b": b, "in_proj_a": a}
    return qwen_linear({**w, **{f"{name}.weight": x for name, x in apart.items()}}, x, c)


def qwen_linear(w, x, c):
    H, J, K, V = (c[f"linear_{n}"] for n in ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim"))
    y = convolution(x @ w["in_proj_qkv.weight"].T, w["conv1d.weight"])
    q, k, v = y.split([H * K, H * K, J * V], -1)
    beta, z = torch.sigmoid(x @ w["in_proj_b.weight"].T), (x @ w["in_proj_z.weight"].T).view(-1, J, V)
    g = -w["A_log"].exp() * torch.log1p((x @ w["in_proj_a.weight"].T + w["dt_bias"]).exp())
    o = delta(unit(q.view(-1, H, K)), unit(k.view(-1, H, K)), v.view(-1, J, V), beta, g)
    return (rms(o, w["norm.weight"], 1e-6) * silu(z)).flatten(1) @ w["out_proj.weight"].T


def qwen_attention(w, x, c):
    A, h, K = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    q, gate = (x @ w["q_proj.weight"].T).view(-1, A, 2, K).unbind(2)
    k, v = ((x @ w[f"{n}_proj.weight"].T).view(-1, h, K) for n in "kv")
    q, k = (rms(y, 1 + w[f"{n}_norm.weight"], 1e-6) for n, y in (("q", q), ("k", k)))
    q, k = (turned(y, c["rope_theta"], K // 4) for y in (q, k))
    return (attention(q, k, v) * torch.sigmoid(gate.flatten(1))) @ w["o_proj.weight"].T


def qwen_layer(w, x, c, attends):
    linear = next_linear if "linear_attn.in_proj_qkvz.weight" in w else qwen_linear
    name, mixer = ("self_attn.", qwen_attention) if attends else ("linear_attn.", linear)
    inner = {key.removeprefix(name): value for key, value in w.items() if key.startswith(name)}
    x = x + mixer(inner, rms(x, 1 + w["input_layernorm.weight"], 1e-6), c)
    y = rms(x, 1 + w["post_attention_layernorm.weight"], 1e-6)
    return x + (mixture(w, y, c) if "mlp.gate.weight" in w else mlp(w, y))


def olmo_linear(w, x, c):
    H, J, K = c["linear_num_key_heads"], c["linear_num_value_heads"], c["linear_key_head_dim"]
    q, k, v = (convolution(x @ w[f"{n}_proj.weight"].T, w[f"{n}_conv1d.weight"]) for n in "qkv")
    beta = 2 * torch.sigmoid(x @ w["b_proj.weight"].T)
    g = -w["A_log"].exp() * torch.log1p((x @ w["a_proj.weight"].T + w["dt_bias"]).exp())
    o = delta(unit(q.view(-1, H, K)), unit(k.view(-1, H, K)), v.view(-1, J, 2 * K), beta, g)
    gate = (x @ w["g_proj.weight"].T).view(o.shape)
    return (rms(o, w["o_norm.weight"], 1e-5) * silu(gate)).flatten(1) @ w["o_proj.weight"].T


def olmo_attention(w, x, c):
    A, h = c["num_attention_heads"], c["num_key_value_heads"]
    q = rms(x @ w["q_proj.weight"].T, w["q_norm.weight"], 1e-6).view(len(x), A, -1)
    k = rms(x @ w["k_proj.weight"].T, w["k_norm.weight"], 1e-6).view(len(x), h, -1)
    return attention(q, k, (x @ w["v_proj.weight"].T).view(len(x), h, -1)) @ w["o_proj.weight"].T


def olmo_layer(w, x, c, attends):
    name, mixer = ("self_attn.", olmo_attention) if attends else ("linear_attn.", olmo_linear)
    inner = {key.removeprefix(name): value for key, value in w.items() if key.startswith(name)}
    if attends:
        x = x + rms(mixer(inner, x, c), w["post_attention_layernorm.weight"], 1e-6)
        return x + rms(mlp(w, x), w["post_feedforward_layernorm.weight"], 1e-6)
    x = x + mixer(inner, rms(x, w["input_layernorm.weight"], 1e-6), c)
    return x + mlp(w, rms(x, w["post_attention_layernorm.weight"], 1e-6))


LAYERS = {"qwen3_5": qwen_layer, "qwen3_5_moe": qwen_layer, "qwen3_next": qwen_layer, "olmo_hybrid": olmo_layer}


def hidden_states(family, weights, config, tokens):
    """weights in published names, tokens [T] -> states after the final norm [T, D], in float64."""
    weights = {name: value.detach().double() for name, value in weights.items()}
    x = weights["model.embed_tokens.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{i}."
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        x = LAYERS[family](own, x, config, attends=f"{prefix}self_attn.q_proj.weight" in weights)
    return rms(x, weights["model.norm.weight"] + family.startswith("qwen"), 1e-6)
