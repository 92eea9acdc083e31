"""Each hybrid, flash-linear-attention's `attn` too: taps are views, padding is nothing, 16 bits round and no more."""

import pytest
import torch

from refine.errors import ModelError
from refine.models.attention.memory import AttentionMemory

FLA = {
    "gated_deltanet with attention": {
        "model_type": "gated_deltanet", "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2, "head_dim": 8,
        "attn": {"layers": [1], "num_heads": 4, "num_kv_heads": 2},
    },
    "delta_net with windows of 24 and full attention": {
        "model_type": "delta_net", "hidden_size": 32, "num_hidden_layers": 3, "num_heads": 2,
        "attn": [
            {"layers": [0], "num_heads": 4, "num_kv_heads": 1, "window_size": 24, "qkv_bias": True},
            {"layers": [2], "num_heads": 2, "rope_theta": 100.0},
        ],
    },
}  # fmt: skip
OTHERS = ("qwen3_5", "qwen3_next", "olmo_hybrid", "kimi_linear", "gated_deltanet")
NAMES = ["qwen3_5", "qwen3_5_moe", "qwen3_next", "olmo_hybrid", "olmo_hybrid with positions", "kimi_linear", *FLA]


@pytest.fixture(params=NAMES)
def config(request, configs):
    """The config of each hybrid."""
    name = request.param
    if name in FLA:
        return FLA[name]
    return {**configs[name.split()[0]], **({"rope_parameters": None} if "with" in name else {})}


def storages(memory):
    """Where keys and values of each attention layer's prefix lie."""
    return [
        {name: x.untyped_storage().data_ptr() for name, x in layer.prefix.tokens.items()}
        for layer in memory.layers
        if isinstance(layer, AttentionMemory)
    ]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_taps_and_rollouts_are_views_of_the_read(config, build, tokens, checkpointing):
    model = build(config, torch.float32).train()
    model.model.gradient_checkpointing = checkpointing
    reading = model.read(tokens(2, 90), tappable=True)
    tapped = reading.tap(torch.tensor([[3, 60], [90, 60]]))
    read = storages(tapped)
    assert read and storages(reading.tap(torch.tensor([[7], [1]]))) == read
    rollouts = tapped.repeat(3)
    for other in (rollouts, rollouts.detach(), rollouts.select([5, 0])):
        assert storages(other) == read
    after = model.read(tokens(12, 4), rollouts).memory
    windows = [
        getattr(layer.options, "window", None) for layer in map(_attention, model.model.layers) if layer is not None
    ]
    for window, one, other in zip(windows, storages(after), read, strict=True):
        assert window is not None or one == other, "full attention never copies its prefix"


def _attention(block):
    return block.mixer if hasattr(block.mixer, "options") else None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_no_real_token(config, build, tokens, compare, weigh, gradients_of, side, dtype):
    model, text, lengths = build(config, dtype), tokens(3, 70), [70, 9, 31]
    real = torch.arange(70)[None] < torch.tensor(lengths)[:, None]
    mask = real if side == "right" else real.flip(1)
    given = torch.where(mask, text, 3)
    padded = model(given, attention_mask=mask.long(), use_cache=True)
    alone = [model(given[b : b + 1, mask[b]]).logits[0] for b in range(3)]
    for b, logits in enumerate(alone):
        compare.tensors(padded.logits[b, mask[b]], logits, f"row {b}")
    one, other = weigh(*(padded.logits[b, mask[b]] for b in range(3))), weigh(*alone)
    compare.gradients(gradients_of(model, one), gradients_of(model, other))


@torch.no_grad()
def test_16_bits_round_once_in_pieces_packed_and_under_autocast(config, build, tokens, compare):
    def apart(one, other):
        """Of mixtures the median token: a rounding may send a token to another expert, which moves it by more."""
        if "num_experts" not in config:
            return compare.distance(one, other)
        return float(((one - other).double().norm(dim=-1) / other.double().norm(dim=-1)).median())

    rounded, exact, text = build(config, torch.bfloat16), build(config), tokens(2, 70)
    exact.load_state_dict({key: value.double() for key, value in rounded.state_dict().items()})
    first = rounded.read(text[:, :33])
    states = torch.cat([first.hidden, rounded.read(text[:, 33:], first.memory).hidden], 1)
    packed = rounded.read(text, lengths=[[33, 37], [70]]).hidden
    assert apart(states, exact.read(text).hidden) < 0.05
    assert apart(packed, exact.read(text, lengths=[[33, 37], [70]]).hidden) < 0.05
    single = exact.float()
    with torch.autocast("cpu", torch.bfloat16):
        reading = single.read(text, tappable=True)
        tapped = single.read(text[:, 50:], reading.tap(torch.tensor([[50], [50]]))).hidden
    assert apart(reading.hidden, single.read(text).hidden) < 0.05
    assert apart(tapped, reading.hidden[:, 50:]) < 0.05
    for layer in reading.memory.layers:
        for key, tensor in layer.tensors().items():
            assert tensor.dtype == (
                torch.float32 if key not in ("keys", "values", "latents", "count") else tensor.dtype
            ), key


def test_a_memory_of_another_hybrid_is_refused(config, configs, build, tokens):
    model, text = build(config, torch.float32), tokens(1, 9)
    others = [one for one in (*FLA.values(), *(configs[name] for name in OTHERS))
              if one["model_type"] != config["model_type"] or one.get("attn") != config.get("attn")]  # fmt: skip
    for other in others:
        with pytest.raises(ModelError, match=r"the memory is of another model: it has '.*', this model") as caught:
            model.read(text, build(other, torch.float32).read(text).memory)
        assert "\n" not in str(caught.value)
