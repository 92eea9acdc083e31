"""The config that all models share. A field or value that is not implemented is refused by its name."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig

from refine.errors import ModelError, nearest, reason

# The largest value of each size: far above any model that exists, and small enough that nothing overflows.
LARGEST = {
    "hidden_size": 2**20,
    "num_hidden_layers": 2**12,
    "vocab_size": 2**24,
    "num_heads": 2**16,
    "num_v_heads": 2**16,
    "head_dim": 2**16,
    "conv_size": 2**12,
    "intermediate_size": 2**22,
    "num_attn_heads": 2**16,
    "num_lact_heads": 2**16,
    "lact_chunk_size": 2**30,
    "window_size": 2**30,
    "w0_w2_low_rank": 2**20,
    "hidden_ratio": 2**10,
    "expand_k": 2**10,
    "expand_v": 2**10,
    "inter_multi": 2**10,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "linear_num_key_heads": 2**16,
    "linear_num_value_heads": 2**16,
    "linear_key_head_dim": 2**16,
    "linear_value_head_dim": 2**16,
    "linear_conv_kernel_dim": 2**12,
    "kv_lora_rank": 2**20,
    "q_lora_rank": 2**20,
    "qk_nope_head_dim": 2**16,
    "qk_rope_head_dim": 2**16,
    "v_head_dim": 2**16,
    "num_experts_per_token": 2**16,
    "num_shared_experts": 2**10,
    "num_experts": 2**16,
    "num_experts_per_tok": 2**16,
    "moe_intermediate_size": 2**22,
    "shared_expert_intermediate_size": 2**22,
}
COUNTS = ("hidden_size", "num_hidden_layers", "vocab_size", "num_heads", "conv_size", "intermediate_size")


class FastWeightConfig(PreTrainedConfig):
    """config.json of a model with a memory that can be tapped. A family adds its fields as annotated class attributes,
    with the defaults of its public format; those of flash-linear-attention derive from `FlaConfig`."""

    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    # fields that are no attributes but may stand in published configs, each with the only value that is implemented
    legacy: ClassVar[dict[str, Any]] = {}
    # fields that must be whole numbers above 0; fields that must be numbers from 0 to 1
    counts: ClassVar[tuple[str, ...]] = COUNTS
    fractions: ClassVar[tuple[str, ...]] = ("initializer_range",)

    hidden_size: int = 2048
    num_hidden_layers: int = 24
    vocab_size: int = 32000
    intermediate_size: int | None = None
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **more: Any) -> None:
        unknown = {name: value for name, value in more.items() if not _belongs_to_transformers(name)}
        try:
            super().__post_init__(**{name: value for name, value in more.items() if name not in unknown})
        except AttributeError as error:  # transformers looks a dtype up by its name in torch
            raise ModelError(f"config of {self.model_type}: {reason(error)}") from None
        self._unknown = {
            name: value for name, value in unknown.items() if name not in self.legacy or value != self.legacy[name]
        }

    def refuse_unsupported(self) -> None:
        """Raises ModelError that names a field whose value is not implemented or not possible."""
        for name, value in self._unknown.items():
            if name in self.legacy:
                raise self.refusal(name, f"only {self.legacy[name]!r} is implemented", value)
            raise self.refusal(
                name, f"unknown to {self.model_type}{nearest(name, type(self).__dataclass_fields__)}", value
            )
        check(self, "hidden_act", ("swish", "silu"))
        check(self, "quantization_config", (None,), "quantised weights are not implemented")
        for name in self.counts:
            value = getattr(self, name, 1)
            optional = name == "intermediate_size" and value is None
            positive = isinstance(value, int) and not isinstance(value, bool) and value > 0
            self.require(optional or positive, name, "expected a whole number above 0")
        for name, largest in LARGEST.items():
            value = getattr(self, name, None)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            self.require(value is None or number, name, "expected a number")
            self.require(value is None or value <= largest, name, f"expected at most {largest}")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            ids = value if isinstance(value, list) and name == "eos_token_id" else [] if value is None else [value]
            self.require(all(isinstance(one, int) for one in ids), name, "expected the number of a token")
        for name in self.fractions:
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            self.require(number and 0 <= value <= 1, name, "expected a number from 0 to 1")

    @classmethod
    def of_file(cls, values: dict[str, Any]) -> FastWeightConfig:
        """The config of the fields of a config.json. Raises ModelError: a field or value that is not implemented."""
        config = cls(**{name: value for name, value in values.items() if name != "model_type"})
        config.refuse_unsupported()
        return config

    def position_limit(self) -> int | None:
        """How many tokens a text may have, all reads together; None: any number."""
        return None

    def memory_shape(self) -> str:
        """The dimensions of a memory, as text. Part of `signature`."""
        raise NotImplementedError

    def require(self, condition: bool, name: str, message: str) -> None:
        """Raises ModelError about field `name` unless `condition` holds."""
        if not condition:
            raise self.refusal(name, message, getattr(self, name))

    def refusal(self, name: str, message: str, value: Any) -> ModelError:
        """The ModelError about field `name` with `value`."""
        return ModelError(f"config of {self.model_type}: {reason(name, 100)} is {reason(repr(value), 100)}: {message}")

    def to_dict(self) -> dict[str, Any]:
        """The fields of config.json, unknown ones included."""
        values = super().to_dict()
        return {**{k: v for k, v in values.items() if k != "_unknown"}, **self._unknown}


class FlaConfig(FastWeightConfig):
    """The fields and defaults that flash-linear-attention's formats share.

    Fields that choose an implementation (attn_mode, fuse_*) or have no effect here (max_position_embeddings) are saved
    again and change no result.
    """

    legacy: ClassVar[dict[str, Any]] = {
        "norm_first": False,
        "share_conv_kernel": False,
        "conv_bias": False,
        "elementwise_affine": True,
        "clamp_min": None,
        "clamp_max": None,
        "rope_scaling": None,
    }
    fractions: ClassVar[tuple[str, ...]] = ("norm_eps", "initializer_range")

    attn_mode: str = "chunk"
    hidden_ratio: int | float | None = 4
    hidden_act: str = "swish"
    norm_eps: float = 1e-6
    max_position_embeddings: int = 2048
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    fuse_norm: bool = True
    fuse_swiglu: bool = True
    fuse_cross_entropy: bool = True
    fuse_linear_cross_entropy: bool = False
    attn: Any = None
    attnres_block_size: int | None = None
    use_l2warp: bool = False

    def refuse_unsupported(self) -> None:
        """Raises ModelError that names a field whose value is not implemented or not possible."""
        super().refuse_unsupported()
        self.refuse_attention()
        check(self, "attnres_block_size", (None,), "attention residuals are not implemented")
        check(self, "use_l2warp", (False, None), "the l2-warp loss is not implemented")

    def refuse_attention(self) -> None:
        """Raises ModelError unless the layers of softmax attention that `attn` asks for are implemented."""
        check(self, "attn", (None, [], {}), "layers of softmax attention are not implemented")


def check(config: FastWeightConfig, name: str, allowed: tuple[Any, ...], why: str | None = None) -> None:
    """Raises ModelError, naming the field, if config has field `name` with a value that is not in `allowed`."""
    if hasattr(config, name):
        expected = f"expected {' or '.join(map(repr, allowed))}"
        config.require(getattr(config, name) in allowed, name, why or expected)


def _belongs_to_transformers(name: str) -> bool:
    """Whether every transformers model may have config field `name`, or the library adds it when loading."""
    known = {
        "architectures",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "model_type",
        "name_or_path",
        "auto_map",
        "return_dict",
        "quantization_config",
        "attn_implementation",
        "trust_remote_code",
    }
    return name.startswith("_") or name in known or hasattr(PreTrainedConfig, name) or name in _base_fields()


def _base_fields() -> set[str]:
    return set(PreTrainedConfig().to_dict())
