"""Tiny checkpoints of each family, written by transformers; on a CPU its own fallbacks run, never fla's kernels."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch

FAMILIES = {
    "qwen3_5": ("Qwen3_5", "Qwen3_5TextConfig", "qwen3_5"),
    "qwen3_5_moe": ("Qwen3_5Moe", "Qwen3_5MoeTextConfig", "qwen3_5_moe"),
    "qwen3_next": ("Qwen3Next", "Qwen3NextConfig", "qwen3_next"),
    "olmo_hybrid": ("OlmoHybrid", "OlmoHybridConfig", "olmo_hybrid"),
    "kimi_linear": ("KimiLinear", "KimiLinearConfig", "kimi_linear"),
}
SHARED = {
    "vocab_size": 61,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "pad_token_id": None,
    "eos_token_id": None,
}
EXPERTS = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 20,
}
FIELDS = {
    "qwen3_5_moe": {"hidden_size": 40, "head_dim": 16, "max_position_embeddings": 400, **EXPERTS},
    # layer 1 has a plain MLP
    "qwen3_next": {
        "hidden_size": 40,
        "head_dim": 16,
        "max_position_embeddings": 400,
        "mlp_only_layers": [1],
        **EXPERTS,
    },
    "qwen3_5": {"hidden_size": 40, "head_dim": 16, "max_position_embeddings": 400},
    "olmo_hybrid": {"hidden_size": 36, "rope_parameters": {"rope_theta": None}},
    "kimi_linear": {
        "hidden_size": 40,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "kv_lora_rank": 20,
        "qk_nope_head_dim": 10,
        "qk_rope_head_dim": 6,
        "v_head_dim": 12,
        "linear_attn_config": {
            "kda_layers": [1, 2, 3],
            "full_attn_layers": [4],
            "num_heads": 4,
            "head_dim": 8,
            "short_conv_kernel_size": 4,
        },
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "n_group": 3,
        "topk_group": 2,
        "moe_intermediate_size": 24,
        "bos_token_id": None,
    },
}
PLAIN = ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule")  # what fla's kernels are replaced by
OF_KIMI = ("chunk_kimi_delta_attention", "recurrent_kimi_delta_attention")


@pytest.fixture(params=list(FAMILIES))
def family(request):
    """Each family in turn."""
    return request.param


def shake(model, seed=0):
    """Weights of which every one matters."""
    torch.manual_seed(seed)
    with torch.no_grad():
        biases = [(name, x) for name, x in model.named_buffers() if name.endswith("e_score_correction_bias")]
        for name, parameter in [*model.named_parameters(), *biases]:
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.4 if "conv1d" in name else 0.7 * parameter.shape[-1] ** -0.5)
            elif name.endswith("A_log"):
                parameter.uniform_(-2, 1)
            else:
                parameter.add_(torch.rand_like(parameter) - 0.5)
    return model


@pytest.fixture
def theirs(monkeypatch):
    """Makes a model of a family in transformers, with other config fields."""
    for kind in FAMILIES:
        module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
        for name in OF_KIMI if kind == "kimi_linear" else PLAIN:
            plain = inspect.unwrap(getattr(module, name))
            known = inspect.signature(plain).parameters

            def run(*args, plain=plain, known=known, **kwargs):
                return plain(*args, **{key: value for key, value in kwargs.items() if key in known})

            monkeypatch.setattr(module, name, run)

    def make(family, seed=0, **fields):
        import transformers

        prefix, config, _ = FAMILIES[family]
        shared = {key: x for key, x in SHARED.items() if family != "kimi_linear" or not key.startswith("linear_")}
        made = getattr(transformers, config)(**{**shared, **FIELDS[family], **fields})
        model = shake(getattr(transformers, f"{prefix}ForCausalLM")(made), seed).eval()
        model.set_experts_implementation("eager")  # the others refuse float64
        return model

    return make
