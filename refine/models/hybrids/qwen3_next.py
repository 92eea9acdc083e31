"""Qwen3-Next (`qwen3_next`): Qwen3.5's layers with mixtures of experts; projections of linear layers are stored fused.

Shape legend: H, J key and value heads of a linear layer · K, V widths of such a head · D hidden size.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from refine.models.blocks import SwiGLU
from refine.models.hybrids.configuration import HybridConfig
from refine.models.hybrids.qwen3_5 import Qwen3_5ForCausalLM
from refine.models.hybrids.qwen3_5_moe import EXPERT_SIZES, mixture_of, refuse_experts
from refine.models.hybrids.regrouping import ExpertsApart, Interleaved, Regrouping
from refine.models.hybrids.tensor_names import TensorNames


class Qwen3NextConfig(HybridConfig):
    """config.json of `qwen3_next`; fields and defaults are transformers'. `router_aux_loss_coef` has no effect:
    training adds no auxiliary loss."""

    model_type = "qwen3_next"
    legacy: ClassVar[dict[str, Any]] = {"attn_output_gate": True}
    without_effect: ClassVar[tuple[str, ...]] = (
        "mamba_ssm_dtype",
        "mtp_num_hidden_layers",  # the layers are left out, and the saved config must not promise them
        "num_nextn_predict_layers",
    )
    counts: ClassVar[tuple[str, ...]] = (*HybridConfig.counts, "decoder_sparse_step", *EXPERT_SIZES)
    rotary_fraction: ClassVar[float] = 0.25

    vocab_size: int = 151936
    hidden_size: int = 2048
    intermediate_size: int | None = 5632
    num_hidden_layers: int = 48
    num_key_value_heads: int | None = 2
    head_dim: int | None = 256
    num_experts: int = 512
    num_experts_per_tok: int = 10
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512
    norm_topk_prob: bool = True
    decoder_sparse_step: int = 1
    mlp_only_layers: Any = None
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001

    def set_defaults(self, more: dict[str, Any]) -> None:
        """No layers without mixtures."""
        self.mlp_only_layers = [] if self.mlp_only_layers is None else self.mlp_only_layers
        super().set_defaults(more)

    def refuse_unsupported(self) -> None:
        """Raises ModelError that names a field whose value is not implemented or not possible."""
        super().refuse_unsupported()
        self.require(isinstance(self.norm_topk_prob, bool), "norm_topk_prob", "expected true or false")
        number = isinstance(self.num_experts, int) and not isinstance(self.num_experts, bool) and self.num_experts >= 0
        self.require(number, "num_experts", "expected a whole number, 0 for no mixtures")
        layers, depth = self.mlp_only_layers, self.num_hidden_layers
        known = isinstance(layers, (list, tuple)) and all(type(one) is int and 0 <= one < depth for one in layers)
        self.require(known, "mlp_only_layers", f"expected a list of layers from 0 to {depth - 1}")
        if self.num_experts:
            refuse_experts(self)

    def is_mixture(self, layer: int) -> bool:
        """Whether layer number `layer` has a mixture in the place of the MLP."""
        sparse = (layer + 1) % self.decoder_sparse_step == 0
        return self.num_experts > 0 and sparse and layer not in self.mlp_only_layers


class Qwen3NextForCausalLM(Qwen3_5ForCausalLM):
    """Qwen3-Next with a language-model head."""

    config_class = Qwen3NextConfig
    tensor_names = TensorNames(ignored=((r"mtp\.", "multi-token prediction (mtp)"),))

    def make_mlp(self, config: Any, layer: int) -> nn.Module:
        return mixture_of(config, config.norm_topk_prob) if config.is_mixture(layer) else SwiGLU(config)

    @classmethod
    def regroupings(cls, config: Any) -> tuple[Regrouping, ...]:
        """For each key head: its q [K], k [K], v and z [J / H · V each]; and b, a [J / H each]."""
        heads, key = config.linear_num_key_heads, config.linear_key_head_dim
        shared = config.linear_num_value_heads // heads
        value = shared * config.linear_value_head_dim
        return (
            ExpertsApart(config.num_experts),
            Interleaved("in_proj_qkvz", heads, (key, key, value, value), (("in_proj_qkv", 3), ("in_proj_z", 1))),
            Interleaved("in_proj_ba", heads, (shared, shared), (("in_proj_b", 1), ("in_proj_a", 1))),
        )
