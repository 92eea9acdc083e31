"""A tiny config keeps the type, the options and the kinds of layers, and can be built."""

from __future__ import annotations

from typing import Any

import pytest

from refine.errors import ModelError
from refine.models import from_config
from refine.phases.tiny_config import tiny
from refine.training.freezing import ATTENTION

DELTA = {"model_type": "delta_net", "hidden_size": 2048, "num_hidden_layers": 24, "num_heads": 16}
QWEN = {"model_type": "qwen3_5_text", "hidden_size": 512, "num_hidden_layers": 8, "linear_num_value_heads": 32}
KIMI = {
    "model_type": "kimi_linear", "hidden_size": 2304, "num_hidden_layers": 8, "num_expert_group": 8, "topk_group": 4,
    "linear_attn_config": {"kda_layers": [1, 2, 3, 5, 6, 7], "full_attn_layers": [4, 8]},
}  # fmt: skip
CASES: dict[str, tuple[dict[str, Any], list[bool]]] = {
    "no attention": (DELTA, [False, False]),
    "attn": ({**DELTA, "attn": {"layers": [7, 15], "num_heads": 16, "num_kv_heads": 4}}, [False, True]),
    "two kinds of attn": (
        {**DELTA, "attn": [{"layers": [3], "num_heads": 8, "window_size": 512}, {"layers": [9], "num_heads": 16}]},
        [False, True, True],
    ),
    "attn alone": ({**DELTA, "num_hidden_layers": 2, "attn": {"layers": [0, 1], "num_heads": 8}}, [True]),
    "qwen3_5": (QWEN, [False, False, False, True]),
    "mixtures": ({"model_type": "qwen3_next", "mlp_only_layers": [0, 9]}, [False, False, False, True]),
    "attention first": ({**QWEN, "layer_types": ["full_attention", *["linear_attention"] * 7]}, [True, False]),
    "one kind": ({**QWEN, "layer_types": ["linear_attention"] * 8}, [False, False]),
    "olmo_hybrid": ({"model_type": "olmo_hybrid", "rope_parameters": {"rope_theta": None}}, [False] * 3 + [True]),
    "kimi_linear": (KIMI, [False, False, False, True]),
    "kimi_linear, dense layers last seen": ({**KIMI, "first_k_dense_replace": 5}, [False] * 3 + [True, False, False]),
    "kimi_linear without mixtures": ({**KIMI, "num_experts": 0}, [False, False, False, True]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_tiny_model_has_each_kind_of_layer_once(case: str) -> None:
    fields, attending = CASES[case]
    small = tiny(fields)
    model = from_config({**small, "vocab_size": 64})
    assert [isinstance(block.mixer, ATTENTION) for block in model.model.layers] == attending
    assert sum(parameter.numel() for parameter in model.parameters()) < 100_000
    assert {**small, **fields}.keys() == small.keys()


def test_options_stay_and_heads_stay_grouped() -> None:
    qwen = tiny({**QWEN, "num_attention_heads": 16, "num_key_value_heads": 4, "attention_bias": True})
    assert (qwen["num_attention_heads"], qwen["num_key_value_heads"], qwen["attention_bias"]) == (4, 2, True)
    assert (qwen["linear_num_key_heads"], qwen["linear_num_value_heads"]) == (2, 4)
    olmo = tiny({"model_type": "olmo_hybrid"})
    assert (olmo["num_key_value_heads"], olmo["linear_key_head_dim"], olmo["linear_value_head_dim"]) == (4, 8, 16)
    windows = tiny(CASES["two kinds of attn"][0])["attn"]
    assert [one.get("window_size") for one in windows] == [32, None]


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model\.config: model_type is 'llama'"):
        tiny({"model_type": "llama"})
