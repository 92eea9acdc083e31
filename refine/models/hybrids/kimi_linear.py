"""Kimi Linear (`kimi_linear`): Kimi Delta Attention, latent attention without positions, mixtures of experts.

Shape legend: N tokens · D hidden size · H heads of a linear layer · K width of such a head.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn

from refine.models.attention.latent import LatentAttention, LatentOptions
from refine.models.blocks import Block, BlockNames, SwiGLU
from refine.models.delta.kda import KimiDelta
from refine.models.hybrids.configuration import ATTENTION, LINEAR
from refine.models.hybrids.kimi_linear_config import KimiLinearConfig
from refine.models.hybrids.model import HybridForCausalLM, LayerKind
from refine.models.hybrids.regrouping import ExpertsApart, Regrouping
from refine.models.hybrids.tensor_names import TensorNames
from refine.models.mixture import Experts, Mixture, Shared, SigmoidRouter
from refine.models.token_mixer import TokenMixer
from refine.ops.made_again import without_keeping

NAMES = BlockNames("self_attn", ("input_layernorm", "post_attention_layernorm"))
SPARSE = "block_sparse_moe"  # what a mixture is called in the release; a plain MLP is `mlp`


class KimiLinearDelta(KimiDelta):
    """Kimi Delta Attention, unbounded, with the release's names."""

    def __init__(self, config: KimiLinearConfig) -> None:
        heads, width, conv_size = config.linear_sizes
        super().__init__(config.hidden_size, heads, heads, width, width, conv_size, config.rms_norm_eps)
        self.f_a_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.f_b_proj = nn.Linear(width, heads * width, bias=False)
        self.g_a_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.g_b_proj = nn.Linear(width, heads * width, bias=False)

    def rate_shape(self) -> tuple[int, ...]:
        return (1, 1, self.value_heads, 1)

    def raw_decay(self, x: Tensor) -> Tensor:
        return self.f_b_proj(without_keeping(self.f_a_proj, x))

    def output_gate(self, x: Tensor) -> Tensor:
        return self.g_b_proj(without_keeping(self.g_a_proj, x))


def _attention(config: Any) -> LatentAttention:
    return LatentAttention(
        LatentOptions(
            config.hidden_size,
            config.num_attention_heads,
            config.kv_lora_rank,
            config.qk_nope_head_dim,
            config.qk_rope_head_dim,
            config.v_head_dim,
            config.q_lora_rank,
            config.attention_bias,
        )
    )


class KimiLinearForCausalLM(HybridForCausalLM):
    """Kimi Linear with a language-model head."""

    config_class = KimiLinearConfig
    kinds: ClassVar[dict[str, LayerKind]] = {
        LINEAR: LayerKind(KimiLinearDelta, NAMES),
        ATTENTION: LayerKind(_attention, NAMES),
    }
    # transformers saves every layer under block_sparse_moe, and calls every layer mlp in memory
    tensor_names = TensorNames(
        spellings=(
            (rf"\.{SPARSE}\.(gate_proj|up_proj|down_proj)\.", r".mlp.\1."),
            (r"\.mlp\.(gate\.|experts\.|shared_experts\.)", rf".{SPARSE}.\1"),
            (r"\.self_attn\.forget_gate\.", ".self_attn."),
        )
    )

    def make_block(self, config: Any, layer: int, mixer: TokenMixer) -> Block:
        names = replace(NAMES, mlp=SPARSE) if config.is_mixture(layer) else NAMES
        return Block(mixer, self.make_mlp(config, layer), (self.make_norm(config), self.make_norm(config)), names)

    def make_mlp(self, config: Any, layer: int) -> nn.Module:
        if not config.is_mixture(layer):
            return SwiGLU(config)
        hidden, inner = config.hidden_size, config.moe_intermediate_size
        router = SigmoidRouter(
            hidden,
            config.num_experts,
            config.num_experts_per_token,
            config.num_expert_group,
            config.topk_group,
            config.moe_renormalize,
            config.routed_scaling_factor,
        )
        shared = None
        if config.num_shared_experts:
            shared = Shared(SwiGLU(config, inner * config.num_shared_experts), "shared_experts", None)
        return Mixture(hidden, router, Experts(hidden, inner, config.num_experts), shared)

    @classmethod
    def regroupings(cls, config: Any) -> tuple[Regrouping, ...]:
        return (ExpertsApart(config.num_experts, "w1", "w3", "w2"),)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, KimiDelta):
            module.reset_decay()
