"""Layers of softmax attention in flash-linear-attention's formats: the config field `attn`.

{"layers": [1, 3], "num_heads": 8, "num_kv_heads": 8, "qkv_bias": false, "window_size": null, "rope_theta": 10000.0}, or
a list of such specifications for different layers. Heads are hidden_size / num_heads wide, and turned whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refine.errors import ModelError, nearest, reason
from refine.models.attention.mixer import Attention, AttentionOptions
from refine.models.token_mixer import TokenMixer

DEFAULTS: dict[str, Any] = {
    "layers": None,
    "num_heads": None,
    "num_kv_heads": None,
    "qkv_bias": False,
    "window_size": None,
    "rope_theta": 10000.0,
}


def attention_layers(config: Any) -> dict[int, AttentionOptions]:
    """The options of each layer that `config.attn` gives softmax attention. Raises ModelError: a field that is unknown,
    missing or not possible, or a layer named twice."""
    specifications = config.attn if isinstance(config.attn, list) else [config.attn] if config.attn else []
    found: dict[int, AttentionOptions] = {}
    for given in specifications:
        options, layers = _options(config, given)
        for layer in layers:
            if layer in found:
                raise _refusal(config, "layers", layers, f"layer {layer} is named twice")
            found[layer] = options
    return found


def attention_or(make: Callable[[Any], TokenMixer], config: Any, layer: int) -> TokenMixer:
    """The mixer of layer number `layer`: softmax attention where `config.attn` names it, else make(config)."""
    options = attention_layers(config).get(layer)
    return make(config) if options is None else Attention(options)


def memory_text(config: Any) -> str:
    """The attention layers' part of a memory's dimensions; empty without any."""
    return "".join(
        f", attention in layer {i}: {options.text}" for i, options in sorted(attention_layers(config).items())
    )


def _options(config: Any, given: Any) -> tuple[AttentionOptions, list[int]]:
    if not isinstance(given, dict):
        raise ModelError(f"config of {config.model_type}: attn is {reason(repr(given), 100)}: expected its fields")
    if unknown := [name for name in given if name not in DEFAULTS]:
        raise _refusal(config, unknown[0], given[unknown[0]], f"unknown{nearest(unknown[0], DEFAULTS)}")
    values = {**DEFAULTS, **given}

    def require(condition: bool, name: str, rule: str) -> None:
        if not condition:
            raise _refusal(config, name, values[name], rule)

    for name in ("num_heads", "num_kv_heads", "window_size"):
        absent = values[name] is None and name != "num_heads"
        require(absent or _positive(values[name]), name, "expected a whole number above 0")
    heads, depth = values["num_heads"], config.num_hidden_layers
    groups = heads if values["num_kv_heads"] is None else values["num_kv_heads"]
    even = config.hidden_size % (2 * heads) == 0
    require(even, "num_heads", f"expected a divisor of {config.hidden_size} (hidden_size) with heads of even width")
    require(heads % groups == 0, "num_kv_heads", f"expected a divisor of {heads} (num_heads)")
    require(isinstance(values["qkv_bias"], bool), "qkv_bias", "expected true or false")
    theta = values["rope_theta"]
    require(isinstance(theta, (int, float)) and not isinstance(theta, bool) and 0 < theta < float("inf"), "rope_theta",
            "expected a number above 0")  # fmt: skip
    layers = values["layers"]
    inside = isinstance(layers, (list, tuple)) and all(type(i) is int and 0 <= i < depth for i in layers)
    require(inside, "layers", f"expected a list of layers, 0 .. {depth - 1}")
    width = config.hidden_size // heads
    return AttentionOptions(
        config.hidden_size,
        heads,
        groups,
        width,
        turned=width,
        theta=float(theta),
        bias=values["qkv_bias"],
        window=values["window_size"],
    ), list(layers)


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 2**30


def _refusal(config: Any, name: str, value: Any, message: str) -> ModelError:
    shown = reason(repr(value), 100)
    return ModelError(f"config of {config.model_type}: attn.{reason(str(name), 100)} is {shown}: {message}")
