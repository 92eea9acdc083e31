"""The shapes of the models that the benchmarks measure, as configs for `refine.models.from_config`.

SMALL, HYBRIDS: 1.7M to 1.8M parameters each. PUBLISHED: the sizes of the released models, measured with random weights.
"""

from __future__ import annotations

from typing import Any

import torch

Config = dict[str, Any]
_SHARED: Config = {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 256, "vocab_size": 4096}
SMALL: dict[str, Config] = {
    "DeltaNet": {"model_type": "delta_net", "num_heads": 2, **_SHARED},
    "Gated DeltaNet": {"model_type": "gated_deltanet", "num_heads": 2, "head_dim": 48, "expand_v": 1.0, **_SHARED},
    "LaCT": {
        "model_type": "lact_swiglu",
        "num_attn_heads": 4,
        "num_lact_heads": 2,
        "lact_chunk_size": 512,
        "window_size": 512,
        **_SHARED,
    },
}
PUBLISHED: dict[str, Config] = {
    "DeltaNet 1.3B": {
        "model_type": "delta_net",
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_heads": 16,
        "vocab_size": 32000,
    },
    "LaCT 760M": {
        "model_type": "lact_swiglu",
        "hidden_size": 1536,
        "num_hidden_layers": 24,
        "num_attn_heads": 24,
        "num_lact_heads": 4,
        "lact_chunk_size": 2048,
        "window_size": 2048,
        "w0_w2_low_rank": 32,
        "use_momentum": True,
        "learnable_ttt_scale": True,
        "rope_theta": 1e6,
        "vocab_size": 32000,
    },
}
_LINEAR: Config = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 48}
HYBRIDS: dict[str, Config] = {  # every fourth layer attends, as published; 1.7M parameters each
    "Qwen3.5": {
        "model_type": "qwen3_5_text",
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "linear_value_head_dim": 48,
        **_LINEAR,
        **_SHARED,
    },
    "OLMo Hybrid": {
        "model_type": "olmo_hybrid",
        "num_attention_heads": 2,
        "linear_value_head_dim": 96,
        "rope_parameters": {"rope_theta": None},
        **_LINEAR,
        **_SHARED,
    },
}
SHAPES = {"small": SMALL, "published": PUBLISHED, "hybrids": HYBRIDS}
VOCABULARY, LAYERS = 512, 4  # of `of_width`


def with_default_mlp(config: Config) -> Config:
    """`config` with the model type's own MLP width, which is wider than that of SMALL."""
    return {name: value for name, value in config.items() if name != "intermediate_size"}


def of_width(name: str, width: int) -> Config:
    """A model of SMALL's kinds with heads of 64 channels, beside which a transformer of the same width can stand."""
    heads = width // 64
    kinds: dict[str, Config] = {
        "DeltaNet": {"num_heads": heads},
        "Gated DeltaNet": {"num_heads": heads, "expand_v": 2.0},
        "LaCT": {"num_attn_heads": heads, "num_lact_heads": max(1, heads // 2)},
    }
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": LAYERS,
        "vocab_size": VOCABULARY,
        "intermediate_size": 3 * width,
    }
    return SMALL[name] | sizes | kinds[name]


def model_of_width(name: str, width: int) -> Any:
    """The model `of_width`, or the transformers Llama beside it, with random weights."""
    from transformers import LlamaConfig, LlamaModel

    from refine.models import from_config

    torch.manual_seed(0)
    if name != "Llama":
        return from_config(of_width(name, width))
    heads = width // 64
    config = LlamaConfig(
        hidden_size=width,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=3 * width,
        vocab_size=VOCABULARY,
        attn_implementation="sdpa",
    )
    return LlamaModel(config)


def shortened(config: Config, factor: int) -> Config:
    """Two narrow layers of the same kind with chunks and windows shorter by `factor`: enough to try a script with."""
    heads = {"num_heads": 2, "num_attn_heads": 2, "num_lact_heads": 2}
    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 61, **heads}
    shorter = {name: config[name] // factor for name in ("lact_chunk_size", "window_size") if name in config}
    return {name: tiny.get(name, value) for name, value in config.items()} | shorter
