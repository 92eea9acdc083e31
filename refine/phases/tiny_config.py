"""config.json's fields of a tiny model of the same type, with the same options and kinds of layers: for a rehearsal."""

from __future__ import annotations

from typing import Any

WIDTHS = {  # small values of config.json fields, for the fields that a config has or that its type needs
    "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2, "head_dim": 16, "num_v_heads": 2, "num_attn_heads": 2,
    "num_lact_heads": 2, "intermediate_size": 64, "lact_chunk_size": 32, "window_size": 32, "w0_w2_low_rank": 4,
}  # fmt: skip
ALWAYS = ("hidden_size", "num_hidden_layers", "intermediate_size")
HEADS = 4  # of attention, in a hybrid


def tiny(fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` (without vocab_size) with small widths and few layers: one of each kind, in the order of the model.

    Raises ModelError: a type or a field that is not implemented.
    """
    from refine.models.hybrids.configuration import HybridConfig
    from refine.models.hybrids.kimi_linear_config import KimiLinearConfig
    from refine.models.loading import config_of

    config = config_of(fields, "model.config")
    if isinstance(config, HybridConfig):
        return {**fields, **_of_hybrid(config)}
    if isinstance(config, KimiLinearConfig):
        return {**fields, **_of_kimi_linear(config)}
    small = {name: size for name, size in WIDTHS.items() if name in fields or name in ALWAYS}
    if fields.get("attn"):
        small |= _of_attn(fields["attn"], config)
    return {**fields, **small}


def _of_hybrid(config: Any) -> dict[str, Any]:
    """Heads are grouped as far as they are in `config`, and values as much wider than keys."""
    kinds = list(config.layer_types)
    depth = next((i + 1 for i in range(1, len(kinds)) if len(set(kinds[: i + 1])) > 1), min(2, len(kinds)))
    groups = HEADS if config.num_key_value_heads == config.num_attention_heads else HEADS // 2
    linear = 2 * min(2, config.linear_num_value_heads // config.linear_num_key_heads)
    wider = min(2, max(1, config.linear_value_head_dim // config.linear_key_head_dim))
    return {
        **_of_mixtures(config, depth),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": depth,
        "layer_types": kinds[:depth],
        "num_attention_heads": HEADS,
        "num_key_value_heads": groups,
        "head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": linear,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8 * wider,
    }


def _of_kimi_linear(config: Any) -> dict[str, Any]:
    """The first layers, until there is one of each kind, with a mixture and without."""
    mixtures = [config.is_mixture(i) for i in range(config.num_hidden_layers)]
    kinds = list(zip(config.layer_types, mixtures, strict=True))
    depth = max(1 + [one[place] for one in kinds].index(kind) for place in (0, 1) for kind in {x[place] for x in kinds})
    given, groups = config.linear_attn_config, min(2, config.num_expert_group)
    layers = {name: [i for i in given.get(name, []) if i <= depth] for name in ("kda_layers", "full_attn_layers")}
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": depth,
        "linear_attn_config": {**given, **layers, "num_heads": 2, "head_dim": 8},
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "kv_lora_rank": 16,
        "q_lora_rank": None if config.q_lora_rank is None else 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "num_experts": min(8, config.num_experts),
        "num_experts_per_token": 2,
        "num_expert_group": groups,
        "topk_group": min(groups, config.topk_group),
        "moe_intermediate_size": 16,
    }


def _of_mixtures(config: Any, depth: int) -> dict[str, Any]:
    """Few narrow experts, in the layers where `config` has them."""
    if not getattr(config, "num_experts", 0):
        return {}
    small = {"num_experts": 4, "num_experts_per_tok": min(2, config.num_experts_per_tok), "moe_intermediate_size": 16}
    if hasattr(config, "mlp_only_layers"):
        small["mlp_only_layers"] = [layer for layer in config.mlp_only_layers if layer < depth]
    return {**small, "shared_expert_intermediate_size": 16}


def _of_attn(attn: Any, config: Any) -> dict[str, Any]:
    """`attn` of flash-linear-attention: a layer for each specification, after one of the other kind if there is one."""
    given = attn if isinstance(attn, list) else [attn]
    attending = {layer for one in given for layer in one["layers"]}
    first = 0 if len(attending) == config.num_hidden_layers else 1
    small = []
    for number, one in enumerate(given, first):
        grouped = (one.get("num_kv_heads") or one["num_heads"]) < one["num_heads"]
        narrow = {"layers": [number], "num_heads": 2, "num_kv_heads": 1 if grouped else 2}
        small.append({**one, **narrow, **({"window_size": 32} if one.get("window_size") else {})})
    return {"num_hidden_layers": first + len(small), "attn": small}
