"""config.json of Kimi Linear, in the release's spelling; transformers' spelling is read too."""

from __future__ import annotations

from typing import Any, ClassVar

from refine.errors import nearest
from refine.models.configuration import COUNTS, LARGEST, FastWeightConfig, check
from refine.models.hybrids.configuration import ATTENTION, LINEAR

SIZES = (
    "num_attention_heads",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "num_experts_per_token",
    "num_expert_group",
    "topk_group",
    "moe_intermediate_size",
    "moe_layer_freq",
)
SPELLINGS = {  # of transformers, for the release's
    "max_position_embeddings": "model_max_length",
    "norm_topk_prob": "moe_renormalize",
    "n_group": "num_expert_group",
    "num_local_experts": "num_experts",
    "num_experts_per_tok": "num_experts_per_token",
    "n_shared_experts": "num_shared_experts",
}
LINEAR_FIELDS = {  # of linear_attn_config, with transformers' spelling and default
    "num_heads": ("linear_num_heads", 32),
    "head_dim": ("linear_head_dim", 128),
    "short_conv_kernel_size": ("linear_conv_kernel_dim", 4),
}
LAYERS = ("kda_layers", "full_attn_layers")  # of linear_attn_config, counted from 1


class KimiLinearConfig(FastWeightConfig):
    """config.json of `kimi_linear`; defaults are transformers'.

    `linear_attn_config` has the sizes of linear layers, and says which layers are linear (`kda_layers`) and which
    attend (`full_attn_layers`), counted from 1. Layers from `first_k_dense_replace` on, counted from 0, have mixtures
    of experts where `moe_layer_freq` divides their number. `model_max_length` is no limit: there are no positions.
    """

    model_type = "kimi_linear"
    legacy: ClassVar[dict[str, Any]] = {"output_router_logits": False, "num_nextn_predict_layers": 0}
    without_effect: ClassVar[tuple[str, ...]] = (
        "head_dim",  # of neither kind of layer
        "qk_head_dim",
        "rope_theta",  # nothing is turned
        "rope_scaling",
        "rope_parameters",
        "pretraining_tp",
    )
    counts: ClassVar[tuple[str, ...]] = (*COUNTS, *SIZES)
    fractions: ClassVar[tuple[str, ...]] = ("rms_norm_eps", "initializer_range")

    vocab_size: int = 163840
    hidden_size: int = 2304
    intermediate_size: int | None = 9216
    num_hidden_layers: int = 27
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    model_max_length: int = 1048576
    bos_token_id: int | None = 163584
    eos_token_id: int | list[int] | None = 163586
    pad_token_id: int | None = 163839
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    kv_lora_rank: int = 512
    q_lora_rank: int | None = None
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    mla_use_nope: bool = True
    attention_bias: bool = False
    attention_dropout: float | int | None = 0.0
    linear_attn_config: Any = None
    num_experts: int = 256
    num_experts_per_token: int = 8
    num_shared_experts: int | None = 1
    moe_intermediate_size: int = 1024
    moe_renormalize: bool = True
    moe_router_activation_func: str = "sigmoid"
    routed_scaling_factor: float = 2.446
    use_grouped_topk: bool = True
    num_expert_group: int = 1
    topk_group: int = 1
    first_k_dense_replace: int = 1
    moe_layer_freq: int = 1

    def __post_init__(self, **more: Any) -> None:
        for name in self.without_effect:
            more.pop(name, None)
        for theirs, name in SPELLINGS.items():
            if theirs in more:
                setattr(self, name, more.pop(theirs))
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        self._set_linear(more)
        self._set_dense(more)
        super().__post_init__(**more)

    def _set_linear(self, more: dict[str, Any]) -> None:
        """linear_attn_config, also of transformers' layer_types and linear_*; both may stand, and agree."""
        given, kinds = self.linear_attn_config, more.pop("layer_types", None)
        if given is not None and not isinstance(given, dict):
            raise self.refusal("linear_attn_config", "expected its fields", given)
        found = dict(given or {})
        for name, (theirs, default) in LINEAR_FIELDS.items():
            found.setdefault(name, more.get(theirs, default))
            more.pop(theirs, None)
        if kinds is not None and not isinstance(kinds, (list, tuple)):
            raise self.refusal("layer_types", f"expected a list of {LINEAR!r} and {ATTENTION!r}", kinds)
        depth = self._depth()
        if kinds is None and not any(name in found for name in LAYERS):
            kinds = [ATTENTION if i and i % 4 == 0 else LINEAR for i in range(depth)]
        for name, kind in zip(LAYERS, (LINEAR, ATTENTION), strict=True):
            layers = None if kinds is None else [i + 1 for i, one in enumerate(kinds) if one == kind]
            if layers is not None and found.setdefault(name, layers) != layers:
                raise self.refusal(f"linear_attn_config.{name}", f"layer_types has {layers}", found[name])
        if kinds is not None and any(one not in (LINEAR, ATTENTION) for one in kinds):
            raise self.refusal("layer_types", f"expected a list of {LINEAR!r} and {ATTENTION!r}", kinds)
        self.linear_attn_config = found

    def _set_dense(self, more: dict[str, Any]) -> None:
        """first_k_dense_replace of transformers' mlp_layer_types, which must be dense layers and then mixtures."""
        kinds = more.pop("mlp_layer_types", None)
        if kinds is None:
            return
        given = list(kinds) if isinstance(kinds, (list, tuple)) else []
        first = next((i for i, kind in enumerate(given) if kind != "dense"), len(given))
        if not given or given != ["dense"] * first + ["sparse"] * (len(given) - first):
            raise self.refusal("mlp_layer_types", "expected a list of 'dense' and then 'sparse' ones", kinds)
        if len(given) != self.num_hidden_layers:
            rule = f"expected {self.num_hidden_layers} (num_hidden_layers) of them"
            raise self.refusal("mlp_layer_types", rule, kinds)
        self.first_k_dense_replace, self.moe_layer_freq = first, 1

    def refuse_unsupported(self) -> None:
        """Raises ModelError that names a field whose value is not implemented or not possible."""
        super().refuse_unsupported()
        check(self, "attention_dropout", (0, None), "dropout is not implemented")
        check(self, "mla_use_nope", (True,), "latent attention with positions is not implemented")
        check(self, "moe_router_activation_func", ("sigmoid",))
        check(self, "use_grouped_topk", (True,))
        for name in ("attention_bias", "moe_renormalize"):
            self.require(isinstance(getattr(self, name), bool), name, "expected true or false")
        alike = f"expected {self.num_attention_heads} (num_attention_heads)"
        self.require(self.num_key_value_heads == self.num_attention_heads, "num_key_value_heads", alike)
        self._refuse_experts()
        self._refuse_linear()

    def _refuse_experts(self) -> None:
        for name in ("num_experts", "num_shared_experts", "first_k_dense_replace", "q_lora_rank"):
            value = getattr(self, name)
            optional = value is None and name in ("num_shared_experts", "q_lora_rank")
            self.require(optional or _whole(value, 1 if name == "q_lora_rank" else 0), name, "expected a whole number")
        number = isinstance(self.routed_scaling_factor, (int, float)) and self.routed_scaling_factor > 0
        self.require(number, "routed_scaling_factor", "expected a number above 0")
        if not any(map(self.is_mixture, range(self.num_hidden_layers))):
            return
        experts, groups = self.num_experts, self.num_expert_group
        even = experts % groups == 0 and (groups == 1 or experts // groups > 1)
        self.require(
            even, "num_expert_group", f"expected a divisor of {experts} (num_experts), with groups of two or more"
        )
        self.require(self.topk_group <= groups, "topk_group", f"expected at most {groups} (num_expert_group)")
        there = experts // groups * self.topk_group
        fits = self.num_experts_per_token <= there
        self.require(fits, "num_experts_per_token", f"expected at most the {there} experts of topk_group groups")

    def _refuse_linear(self) -> None:
        given, known = self.linear_attn_config, (*LINEAR_FIELDS, *LAYERS)
        for name, value in given.items():
            if name not in known:
                raise self.refusal(f"linear_attn_config.{name}", f"unknown{nearest(name, known)}", value)
            if name in LINEAR_FIELDS and not _whole(value, 1):
                raise self.refusal(f"linear_attn_config.{name}", "expected a whole number above 0", value)
            if name in LAYERS and not (isinstance(value, list) and all(_whole(one, 1) for one in value)):
                raise self.refusal(f"linear_attn_config.{name}", "expected a list of layers, counted from 1", value)
        layers = sorted([*given.get(LAYERS[0], []), *given.get(LAYERS[1], [])])
        if layers != list(range(1, self.num_hidden_layers + 1)):
            rule = f"expected each layer, 1 .. {self.num_hidden_layers}, once in kda_layers or full_attn_layers"
            raise self.refusal("linear_attn_config", rule, {name: given.get(name) for name in LAYERS})

    @property
    def layer_types(self) -> list[str]:
        """The kind of each layer."""
        attending = set(self.linear_attn_config.get("full_attn_layers", []))
        return [ATTENTION if i + 1 in attending else LINEAR for i in range(self._depth())]

    def _depth(self) -> int:
        """num_hidden_layers, also before it was checked: transformers asks a config for its `layer_types` early."""
        depth = self.num_hidden_layers
        return depth if _whole(depth, 1) and depth <= LARGEST["num_hidden_layers"] else 0

    @property
    def linear_sizes(self) -> tuple[int, int, int]:
        """Of a linear layer: heads, width of a head, width of the convolutions."""
        heads, width, conv_size = (self.linear_attn_config[name] for name in LINEAR_FIELDS)
        return heads, width, conv_size

    def is_mixture(self, layer: int) -> bool:
        """Whether layer number `layer` has a mixture in the place of the MLP."""
        return self.num_experts > 0 and layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0

    def memory_shape(self) -> str:
        """The dimensions of a memory, as text. Part of `signature`."""
        heads, width, conv_size = self.linear_sizes
        attending = ", ".join(str(i) for i, kind in enumerate(self.layer_types) if kind == ATTENTION)
        latents = f"latents of {self.kv_lora_rank} and keys of {self.qk_rope_head_dim}"
        linear = f"heads {heads}, keys {width}, values {width}, convolution {conv_size}"
        return f"layers {self.num_hidden_layers}, {linear}, attention in layers {attending}: {latents}"


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= 2**30
