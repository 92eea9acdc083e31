"""Qwen3.5 with mixtures of experts (`qwen3_5_moe_text`, and the text part of the multimodal `qwen3_5_moe`; 3.6 too).

Qwen3.5's layers, each with a mixture in the place of the MLP.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from refine.models.blocks import SwiGLU
from refine.models.configuration import check
from refine.models.hybrids.configuration import HybridConfig
from refine.models.hybrids.qwen3_5 import Qwen3_5ForCausalLM, Qwen3_5TextConfig
from refine.models.hybrids.regrouping import ExpertsApart, Regrouping
from refine.models.mixture import Experts, Mixture, Shared, SoftmaxRouter

EXPERT_SIZES = ("num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size")


def refuse_experts(config: Any) -> None:
    """Raises ModelError that names a field of the mixtures whose value is not implemented or not possible."""
    check(config, "output_router_logits", (False,), "a model returns no logits of its routers")
    coefficient = config.router_aux_loss_coef
    number = isinstance(coefficient, (int, float)) and not isinstance(coefficient, bool)
    config.require(number, "router_aux_loss_coef", "expected a number")
    possible = config.num_experts_per_tok <= config.num_experts
    config.require(possible, "num_experts_per_tok", f"expected at most {config.num_experts} (num_experts)")


def mixture_of(config: Any, normalised: bool) -> Mixture:
    """The mixture that a config's fields describe. normalised: see routing.by_softmax."""
    router = SoftmaxRouter(config.hidden_size, config.num_experts, config.num_experts_per_tok, normalised)
    experts = Experts(config.hidden_size, config.moe_intermediate_size, config.num_experts)
    shared = Shared(SwiGLU(config, config.shared_expert_intermediate_size))
    return Mixture(config.hidden_size, router, experts, shared)


class Qwen3_5MoeTextConfig(Qwen3_5TextConfig):
    """config.json of `qwen3_5_moe_text`; fields and defaults are transformers'. `router_aux_loss_coef` has no effect:
    training adds no auxiliary loss; nor has `intermediate_size`, since no layer has a plain MLP."""

    model_type = "qwen3_5_moe_text"
    outer: ClassVar[str] = "qwen3_5_moe"
    legacy: ClassVar[dict[str, Any]] = {
        **Qwen3_5TextConfig.legacy,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
    }
    counts: ClassVar[tuple[str, ...]] = (*HybridConfig.counts, "num_experts", *EXPERT_SIZES)

    hidden_size: int = 2048
    intermediate_size: int | None = None
    num_hidden_layers: int = 40
    num_key_value_heads: int | None = 2
    num_experts: int = 256
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001

    def refuse_unsupported(self) -> None:
        """Raises ModelError that names a field whose value is not implemented or not possible."""
        super().refuse_unsupported()
        refuse_experts(self)


class Qwen3_5MoeForCausalLM(Qwen3_5ForCausalLM):
    """Qwen3.5-MoE with a language-model head."""

    config_class = Qwen3_5MoeTextConfig

    def make_mlp(self, config: Any, layer: int) -> nn.Module:
        return mixture_of(config, normalised=True)

    @classmethod
    def regroupings(cls, config: Any) -> tuple[Regrouping, ...]:
        return (ExpertsApart(config.num_experts),)
