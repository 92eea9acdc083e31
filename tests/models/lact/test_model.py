"""LaCT's own promises: the published formulas; rollouts over chunk boundaries; a memory of views; bounded decoding.

These are also the tests of lact/mixer.py, lact/memory.py and lact/trace.py.
"""

import pytest
import torch
from torch.nn.functional import rms_norm, silu, softplus

from refine.models.token_mixer import Keep
from refine.ops.attention import window as window_attention
from refine.ops.fast_mlp import mlp as fast_weight_mlp
from refine.ops.layout import Layout

CHUNK, WINDOW = 8, 11
TINY = {
    "model_type": "lact_swiglu",
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attn_heads": 4,
    "num_lact_heads": 2,
    "lact_chunk_size": CHUNK,
    "window_size": WINDOW,
}
OPTIONS = {
    "defaults": {},
    "no momentum": {"use_momentum": False},
    "muon": {"use_muon": True},
    "prenorm": {"ttt_prenorm": True},
    "low rank": {"w0_w2_low_rank": 3},
    "qk norm": {"attn_qk_norm": True, "norm_eps": 0.5},
    "fixed scale": {"learnable_ttt_scale": False},
    "no position": {"ttt_nope": True},
    "no silu": {"qkv_silu": False},
    "no silu of v": {"no_v_silu": True},
    "bias, wide, other theta": {"qkv_bias": True, "inter_multi": 1.5, "rope_theta": 100.0},
    "as published": {"attn_qk_norm": True, "ttt_prenorm": True, "use_muon": True, "w0_w2_low_rank": 3},
}


def by_formula(layer, x, config):
    """The layer's output for one document x [T, D], from the paper's formulas, one token and head after the other."""
    p, length, hidden = dict(layer.named_parameters()), x.shape[0], config.hidden_size
    width, fast_width = hidden // config.num_attn_heads, hidden // config.num_lact_heads

    def linear(name):
        return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)

    def turned(y):  # rotate-half, heads of the attention
        angles = torch.arange(length)[:, None] * config.rope_theta ** -(torch.arange(0, width, 2).double() / width)
        halves = y.view(length, config.num_attn_heads, 2, width // 2)
        rotor = torch.polar(torch.ones_like(angles), angles)[:, None]
        pairs = torch.complex(halves[:, :, 0], halves[:, :, 1]) * rotor
        return torch.stack([pairs.real, pairs.imag], 2).reshape(length, hidden)

    q, k, v = linear("qkv").chunk(3, -1)
    if config.attn_qk_norm:
        q, k = rms_norm(q, (hidden,), p["q_norm.weight"], 1e-5), rms_norm(k, (hidden,), p["k_norm.weight"], 1e-5)
    fast = [q * p["qk_scale"][:, 0] + p["qk_offset"][:, 0], k * p["qk_scale"][:, 1] + p["qk_offset"][:, 1], v]
    if config.qkv_silu:
        fast = [silu(y) for y in fast[:2]] + [fast[2] if config.no_v_silu else silu(fast[2])]
    for i in (0, 1):
        norm = fast[i].view(length, -1, fast_width).norm(dim=-1, keepdim=True)
        fast[i] = (fast[i].view(length, -1, fast_width) / (norm + 1e-5)).view(length, hidden)
        fast[i] = fast[i] if config.ttt_nope else turned(fast[i])
    fast = [y.view(length, config.num_lact_heads, fast_width) for y in fast]
    attended = torch.zeros(length, hidden, dtype=x.dtype)
    tq, tk = turned(q), turned(k)
    for head in range(config.num_attn_heads):
        here = slice(head * width, (head + 1) * width)
        for t in range(length):
            seen = slice(max(0, t - config.window_size + 1), t + 1)
            weights = torch.softmax(tk[seen, here] @ tq[t, here] / width**0.5, 0)
            attended[t, here] = weights @ v[seen, here]
    tokens = {"keys": fast[1], "values": fast[2]}
    base = torch.tensor(0.001, dtype=x.dtype).expm1().log()
    tokens["rates"] = softplus(linear("lr_proj") + base).view(length, config.num_lact_heads, 3)
    if config.use_momentum:
        tokens["carry"] = linear("momentum_proj.0").sigmoid()
    rule = fast_weight_mlp.Rule(config.lact_chunk_size, config.use_momentum, config.use_muon, config.ttt_prenorm)
    w0, w2 = (
        p[n] if n in p else p[f"{n}.w_left"] @ p[f"{n}.w_right"] + torch.eye(fast_width).double() / 2
        for n in ("w0", "w2")
    )
    out, _, _ = fast_weight_mlp.by_token(w0, p["w1"], w2, fast[0], tokens, rule)
    out = rms_norm(out, (fast_width,), p["ttt_norm.weight"], 1e-5)
    if config.learnable_ttt_scale:
        out = out * silu(linear("ttt_scale_proj"))[:, :, None]
    return (attended + out.reshape(length, hidden)) @ p["o_proj.weight"].T


@pytest.mark.parametrize("length", [1, CHUNK, CHUNK + 1, 3 * CHUNK + 2])
@pytest.mark.parametrize("option", OPTIONS)
def test_a_layer_computes_the_published_formulas(option, length, build, compare):
    model = build({**TINY, **OPTIONS[option]})
    layer = model.model.layers[0].attn
    torch.manual_seed(length)
    x = torch.randn(length, 24, dtype=torch.float64)
    out, _ = layer(x, Layout([length]), None, Keep.ENDS)
    expected = by_formula(layer, x, model.config)
    compare.tensors(out, expected)
    weights = torch.arange(out.numel(), dtype=torch.float64).sin().view(out.shape)
    for (name, parameter), *pair in zip(
        layer.named_parameters(),
        *(
            torch.autograd.grad((y * weights).sum(), list(layer.parameters()), allow_unused=True)
            for y in (out, expected)
        ),
        strict=True,
    ):
        got, wanted = (torch.zeros_like(parameter) if g is None else g for g in pair)
        assert compare.distance(got, wanted) <= 1e-9 or (got - wanted).abs().max() < 1e-12, name


@pytest.mark.parametrize("option", ["muon", "as published"])
def test_muon_in_float32_reads_in_pieces_and_from_taps_as_whole(option, build, tokens, compare, weigh, gradients_of):
    model = build({**TINY, **OPTIONS[option], "num_hidden_layers": 2}, torch.float32)
    text = tokens(2, 3 * CHUNK + 2)
    memory, hidden = None, []
    for part in text.split([1, CHUNK, 2 * CHUNK - 2, 3], 1):
        reading = model.read(part, memory)
        memory = reading.memory
        hidden.append(reading.hidden)
    whole = model.read(text, tappable=True)
    tapped = whole.tap(torch.tensor([[CHUNK + 1], [2 * CHUNK]]))
    alone = [model.read(text[:1, : CHUNK + 1]).memory, model.read(text[1:, : 2 * CHUNK]).memory]
    compare.tensors(torch.cat(hidden, 1), whole.hidden)
    compare.memories(memory, whole.memory)
    for row in range(2):
        compare.memories(tapped.select([row]), alone[row])
    one, other = weigh(torch.cat(hidden, 1), tapped), weigh(whole.hidden, type(tapped).cat(alone))
    wanted = gradients_of(model, other)
    apart = _farthest(gradients_of(model, one), wanted, compare)
    # Newton–Schulz steps are steep at small singular values. Every embedding moved by one unit in its last place moves
    # these gradients by 1.9e-5 to 1.1e-4 (six seeds of each option); reading in pieces moves them by 7e-6 to 4.2e-5.
    # In float32 no two ways of rounding can agree to 1e-5; in float64 they agree to 1e-10.
    embeddings = model.model.embeddings.weight
    with torch.no_grad():
        up = torch.rand(embeddings.shape, generator=torch.Generator().manual_seed(0)) < 0.5
        embeddings.copy_(embeddings.nextafter(torch.where(up, torch.inf, -torch.inf)))
    nearby = model.read(text, tappable=True)
    tapped = nearby.tap(torch.tensor([[CHUNK + 1], [2 * CHUNK]]))
    rounding = _farthest(gradients_of(model, weigh(nearby.hidden, tapped)), wanted, compare)
    assert apart <= min(1e-4, 5 * rounding), f"{apart:.1e}, but one rounding moves them by {rounding:.1e}"


def _farthest(found, wanted, compare):
    """The largest distance of a parameter's two gradients."""
    return max(compare.distance(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("length", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3, 37])
def test_rollouts_across_chunk_boundaries_are_as_reading_on(length, build, tokens, compare, weigh, gradients_of):
    """From taps just before, at and after the end of a chunk; rollouts that close none, one or several chunks."""
    model = build({**TINY, "num_hidden_layers": 2})
    text = tokens(1, 3 * CHUNK + 5)
    positions = torch.tensor([[2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1, 5, 3 * CHUNK + 5, 2 * CHUNK]])
    following = tokens(12, length, seed=2)
    rollouts = model.read(following, model.read(text, tappable=True).tap(positions).repeat(2))
    expected = [
        model.read(torch.cat([text[0, :t], following[2 * row + i]])[None])
        for row, t in enumerate(positions[0].tolist())
        for i in (0, 1)
    ]
    hidden = torch.cat([reading.hidden[:, -length:] for reading in expected])
    compare.tensors(rollouts.hidden, hidden)
    for row, reading in enumerate(expected):
        compare.memories(rollouts.memory.select([row]), reading.memory)
    one, other = (
        weigh(rollouts.hidden, rollouts.memory),
        weigh(hidden, type(rollouts.memory).cat([r.memory for r in expected])),
    )
    compare.gradients(gradients_of(model, one), gradients_of(model, other))


def test_windows_and_chunks_of_taps_are_views_into_the_read(build, tokens):
    model = build(TINY)
    reading = model.read(tokens(1, 60), tappable=True)
    taps = reading.tap(torch.tensor([[20, 33, 33, 60]]))
    many = taps.repeat(16).select(list(range(0, 64, 3))).detach()
    for recent in ("window", "pending"):
        held, repeated = (getattr(memory.layers[0], recent) for memory in (taps, many))
        for name, x in held.pool.items():
            assert x.shape[0] == 60, "the read itself"
            assert repeated.pool[name].data_ptr() == x.data_ptr()
    rollout = model.read(tokens(22, 3, seed=1), many).memory.layers[0]
    assert rollout.window.pool["keys"].data_ptr() == taps.layers[0].window.pool["keys"].data_ptr()
    assert taps.layers[0].state["out"].shape[0] == 3, "states that taps share are held once"
    assert many.nbytes < 2 * taps.nbytes


class Allocated(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the size of every tensor that an operation makes, views aside [numbers]."""

    def __init__(self):
        super().__init__()
        self.sizes = [0]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in given:
            self.sizes.append(made.numel())
        return made


@pytest.mark.parametrize("economical", [False, True], ids=["plain", "gradient checkpointing"])
def test_a_tap_allocates_no_window_and_no_chunk(economical, build, tokens, monkeypatch):
    """What it gives lies in the tensors that the read attended to; checkpointing projects these once for all taps."""
    model = build({**TINY, "window_size": 400, "lact_chunk_size": 400})
    attended, attend = [], window_attention.attend

    def watch(q, keys, values, *more):
        attended.append(keys)
        return attend(q, keys, values, *more)

    monkeypatch.setattr(window_attention, "attend", watch)
    if economical:
        model.model.gradient_checkpointing = True
    reading = model.read(tokens(1, 600), tappable=True)
    positions = torch.tensor([[450, 451, 590, 600, 405]])
    with Allocated() as made:
        taps = reading.tap(positions).layers[0]
    window = 399 * 24
    assert all(to - start == 399 for start, to in taps.window.ranges)
    if economical:  # the 594 tokens that the five windows span, and not 5 × 399
        assert max(made.sizes) <= 600 * 3 * 24 and taps.window.pool["keys"].shape[0] < 600
    else:
        assert max(made.sizes) < window / 4
        assert taps.window.pool["keys"].untyped_storage().data_ptr() == attended[0].untyped_storage().data_ptr()


def test_decoding_copies_the_window_only_once_in_a_limit(build, tokens):
    model = build({**TINY, "window_size": 600})
    limit = model.model.layers[0].attn.append_limit
    assert limit == 34  # isqrt(2 * 600)
    with torch.no_grad():
        memory = model.read(tokens(1, 700), tappable=True).tap(torch.tensor([[650]]))
        pools = [memory.layers[0].window.pool["keys"].data_ptr()]
        for step in range(2 * limit + 3):
            memory = model.read(tokens(1, 1, seed=step), memory).memory
            pools.append(memory.layers[0].window.pool["keys"].data_ptr())
    assert [i for i in range(1, len(pools)) if pools[i] != pools[i - 1]] == [limit + 1, 2 * limit + 2]


def test_a_memory_without_gradient_does_not_keep_its_text_alive(build, tokens):
    model = build(TINY)
    with torch.no_grad():
        memory = model.read(tokens(2, 500)).memory
    for layer in memory.layers:
        for recent, most in ((layer.window, WINDOW - 1), (layer.pending, CHUNK)):
            assert all(x.untyped_storage().nbytes() <= 2 * most * 24 * 8 for x in recent.pool.values())


def test_decoding_holds_a_bounded_memory_and_reads_nothing_again(build, tokens):
    """Bytes stay within what window, chunk and the tokens beside them can take; every token is read once."""
    model, seen = build({**TINY, "window_size": 40, "lact_chunk_size": 30}), 0

    def count(_module, inputs):
        nonlocal seen
        seen += inputs[0].shape[0]

    model.model.layers[0].attn.qkv.register_forward_pre_hook(count)
    reading = model.read(tokens(2, 10))
    memory, sizes = reading.memory.detach(), []
    with torch.no_grad():
        for step in range(300):
            memory = model.read(tokens(2, 1, seed=step), memory).memory
            sizes.append(memory.nbytes)
    assert seen == 2 * 310
    full = model.read(tokens(2, 300)).memory
    beside = model.model.layers[0].attn.append_limit * 2 * (24 * 4 + 8) * 8  # keys and values twice, rates, carry
    assert max(sizes[100:]) <= full.nbytes + beside
    assert max(sizes[200:]) <= max(sizes[100:200])


def test_states_are_float32_in_a_bfloat16_model(build, tokens):
    memory = build({**TINY, "ttt_prenorm": True}, torch.bfloat16).read(tokens(2, 20)).memory
    held = memory.layers[0].tensors()
    assert {name for name, x in held.items() if x.dtype == torch.float32} == {
        "gates",
        "out",
        "gates_sum",
        "out_sum",
        "gates_momentum",
        "out_momentum",
        "pending.rates",
        "pending.carry",
    }
    assert held["window.keys"].dtype == torch.bfloat16


@pytest.mark.requires_cuda
@pytest.mark.parametrize("option", OPTIONS)
def test_on_cuda_a_model_reads_taps_and_decodes_as_on_the_cpu(option, build, tokens, compare):
    """Heads as wide as the kernels want them; float32, whose products tensor cores round to tf32."""
    wide = {"hidden_size": 128, "num_attn_heads": 4, "num_hidden_layers": 2, "lact_chunk_size": 64, "window_size": 80}
    model = build({**TINY, **wide, **OPTIONS[option]}, torch.float32)
    text, taps, following = tokens(2, 300), torch.tensor([[64, 65], [299, 3]]), tokens(8, 5, seed=2)
    results = []
    for device in ("cpu", "cuda"):
        model = model.to(device)
        reading = model.read(text.to(device), tappable=True)
        rollouts = model.read(following.to(device), reading.tap(taps.to(device)).repeat(2))
        with torch.no_grad():
            written = model.continue_greedily(reading.memory, reading.hidden[:, -1], 3)
        (reading.hidden.sin().sum() + rollouts.hidden.sin().sum()).backward()
        grads = [p.grad.cpu() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        results.append((reading.hidden.cpu(), rollouts.hidden.cpu(), written.hidden.cpu()[:, :1], *grads))
    bound = 0.1 if "muon" in option or option == "as published" else 1e-2
    for a, b in zip(*results, strict=True):
        assert compare.distance(a, b) < bound
