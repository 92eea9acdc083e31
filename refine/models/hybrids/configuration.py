"""The config fields that hybrids share: kinds of layers, attention, linear layers, rotary positions.

Shape legend: D hidden size · A, h query and key heads of attention · H, J key and value heads of linear layers.
"""

from __future__ import annotations

from typing import Any, ClassVar

from refine.models.configuration import COUNTS, FastWeightConfig, check

LINEAR, ATTENTION = "linear_attention", "full_attention"
SIZES = (
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_conv_kernel_dim",
)
TURNS_ALONE = {"rope_type": "default", "type": "default"}  # other kinds of rotary positions are refused
# of rope_parameters: what is read, and what does nothing for text
ROPE = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved")


class HybridConfig(FastWeightConfig):
    """Fields as in transformers' configs of Qwen3.5 and OLMo Hybrid. A family sets their defaults.

    `without_effect`: fields of released configs that change no result here; they are not saved again.
    """

    counts: ClassVar[tuple[str, ...]] = (*COUNTS, *SIZES)
    fractions: ClassVar[tuple[str, ...]] = ("rms_norm_eps", "initializer_range")
    without_effect: ClassVar[tuple[str, ...]] = ()
    rotary_fraction: ClassVar[float] = 1.0  # of a head's channels that positions turn, where the config says nothing

    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 32768
    num_attention_heads: int = 16
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    attention_bias: bool = False
    attention_dropout: float | int | None = 0.0
    layer_types: Any = None
    rope_parameters: Any = None
    linear_num_key_heads: int | None = 16
    linear_num_value_heads: int | None = 32
    linear_key_head_dim: int | None = 128
    linear_value_head_dim: int | None = 128
    linear_conv_kernel_dim: int = 4

    def __post_init__(self, **more: Any) -> None:
        for name in self.without_effect:
            more.pop(name, None)
        self._set_rope(more)
        self.set_defaults(more)
        super().__post_init__(**more)

    def set_defaults(self, more: dict[str, Any]) -> None:
        """Set the fields that follow from others where they are None; `more` holds fields that are no attributes."""
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None and self._whole("hidden_size") and self._whole("num_attention_heads"):
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.layer_types is None and self._whole("num_hidden_layers"):
            every = more.pop("full_attention_interval", 4)
            self.require_whole("full_attention_interval", every)
            kinds = (ATTENTION if (i + 1) % every == 0 else LINEAR for i in range(self.num_hidden_layers))
            self.layer_types = list(kinds)
        more.pop("full_attention_interval", None)  # layer_types decides where both are given

    def _set_rope(self, more: dict[str, Any]) -> None:
        """One spelling of rotary positions: rope_parameters, with the older fields inside of it."""
        given = self.rope_parameters if self.rope_parameters is not None else more.pop("rope_scaling", None)
        more.pop("rope_scaling", None)
        if given is not None and not isinstance(given, dict):
            raise self.refusal("rope_parameters", "expected its fields", given)
        rope = {"rope_type": "default", "rope_theta": more.pop("rope_theta", 10000.0), **(given or {})}
        fraction = more.pop("partial_rotary_factor", self.rotary_fraction)
        if fraction != 1.0:
            rope.setdefault("partial_rotary_factor", fraction)
        for name, value in rope.items():
            if name not in ROPE:
                raise self.refusal(f"rope_parameters.{name}", "only plain rotary positions are implemented", value)
            if value != TURNS_ALONE.get(name, value):
                raise self.refusal(f"rope_parameters.{name}", "only 'default' is implemented", value)
        self.rope_parameters = rope

    def refuse_unsupported(self) -> None:
        """Raises ModelError that names a field whose value is not implemented or not possible."""
        super().refuse_unsupported()
        check(self, "attention_dropout", (0, None), "dropout is not implemented")
        self.require(isinstance(self.attention_bias, bool), "attention_bias", "expected true or false")
        self.require_whole("max_position_embeddings", self.max_position_embeddings)
        kinds, depth = self.layer_types, self.num_hidden_layers
        known = isinstance(kinds, (list, tuple)) and all(kind in (LINEAR, ATTENTION) for kind in kinds)
        self.require(known, "layer_types", f"expected a list of {LINEAR!r} and {ATTENTION!r}")
        self.require(len(kinds) == depth, "layer_types", f"expected {depth} (num_hidden_layers) of them")
        groups: Any = self.num_key_value_heads  # whole numbers, as was seen above
        value_groups: Any = self.linear_num_value_heads
        heads, key_heads = self.num_attention_heads, self.linear_num_key_heads
        grouped = heads % groups == 0
        self.require(grouped, "num_key_value_heads", f"expected a divisor of {heads} (num_attention_heads)")
        multiple = value_groups % key_heads == 0
        self.require(multiple, "linear_num_value_heads", f"expected a multiple of {key_heads} (linear_num_key_heads)")
        theta = self.theta
        number = isinstance(theta, (int, float)) and not isinstance(theta, bool) and 0 < theta < float("inf")
        if theta is not None and not number:
            raise self.refusal(
                "rope_parameters.rope_theta", "expected a number above 0, or null for no positions", theta
            )
        fraction = self.rope_parameters.get("partial_rotary_factor", 1.0)
        possible = isinstance(fraction, (int, float)) and 0 < fraction <= 1 and self.turned % 2 == 0
        if theta is not None and not (possible and self.turned > 0):
            rule = f"expected that it turns an even number of the {self.head_dim} channels of a head"
            raise self.refusal("rope_parameters.partial_rotary_factor", rule, fraction)

    @property
    def theta(self) -> float | None:
        """The base of rotary positions; None: attention has no positions."""
        return self.rope_parameters["rope_theta"]

    @property
    def turned(self) -> int:
        """Channels of an attention head that rotary positions turn."""
        if self.theta is None:
            return 0
        return int(self.head_dim * self.rope_parameters.get("partial_rotary_factor", 1.0))

    def position_limit(self) -> int | None:
        """max_position_embeddings, where attention has rotary positions."""
        return self.max_position_embeddings if self.turned and ATTENTION in self.layer_types else None

    def memory_shape(self) -> str:
        """The dimensions of a memory, as text. Part of `signature`."""
        attending = ", ".join(str(i) for i, kind in enumerate(self.layer_types) if kind == ATTENTION)
        linear = f"heads {self.linear_num_key_heads}, value heads {self.linear_num_value_heads}"
        widths = f"keys {self.linear_key_head_dim}, values {self.linear_value_head_dim}"
        attention = f"attention in layers {attending}: heads {self.num_key_value_heads} of {self.head_dim}"
        convolution = f"convolution {self.linear_conv_kernel_dim}"
        return f"layers {self.num_hidden_layers}, {linear}, {widths}, {convolution}, {attention}"

    def require_whole(self, name: str, value: Any) -> None:
        """Raises ModelError unless field `name` is a whole number above 0."""
        if not (isinstance(value, int) and not isinstance(value, bool) and value > 0):
            raise self.refusal(name, "expected a whole number above 0", value)

    def _whole(self, name: str) -> bool:
        value = getattr(self, name)
        return isinstance(value, int) and not isinstance(value, bool) and value > 0
