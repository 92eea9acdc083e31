"""Qwen3.5 dense (`qwen3_5_text`, and the text part of the multimodal `qwen3_5`; 3.6 and 3.8 have the same types).

Layers of Gated DeltaNet and gated attention, every fourth attending; all norms but the gated one are zero-centred.
Shape legend: N tokens · D hidden size · H, J key and value heads of a linear layer · K, V widths of such a head.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from refine.errors import ModelError, nearest, reason
from refine.models.attention.mixer import Attention
from refine.models.blocks import BlockNames
from refine.models.configuration import FastWeightConfig
from refine.models.delta.mixer import DeltaRuleMixer, ShortConvolution
from refine.models.hybrids.configuration import ATTENTION, LINEAR, HybridConfig
from refine.models.hybrids.model import HybridForCausalLM, LayerKind, attention_of
from refine.models.hybrids.tensor_names import TensorNames
from refine.ops import short_convolution
from refine.ops.layout import Layout
from refine.ops.made_again import without_keeping
from refine.ops.rms_norm import RMSNorm, ZeroCentredRMSNorm

# fields of the multimodal config beside text_config: those of the parts that are left out, and what the text repeats
OUTER = ("vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id",
         "architectures", "dtype", "torch_dtype", "transformers_version", "model_type", "language_model_only",
         "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "auto_map")  # fmt: skip
SHARED = ("tie_word_embeddings", "dtype", "torch_dtype")  # of the multimodal config: for the text part too
NORMS = ("input_layernorm", "post_attention_layernorm")


class Qwen3_5TextConfig(HybridConfig):
    """config.json of `qwen3_5_text`; fields and defaults are transformers'."""

    model_type = "qwen3_5_text"
    outer: ClassVar[str] = "qwen3_5"  # the type of the multimodal config around it
    legacy: ClassVar[dict[str, Any]] = {"attn_output_gate": True, "output_gate_type": "swish", "mlp_only_layers": []}
    without_effect: ClassVar[tuple[str, ...]] = (
        "mamba_ssm_dtype",
        "mtp_num_hidden_layers",  # the layers are left out, and the saved config must not promise them
        "mtp_use_dedicated_embeddings",
    )
    rotary_fraction: ClassVar[float] = 0.25

    vocab_size: int = 248320
    hidden_size: int = 4096
    intermediate_size: int | None = 12288
    num_hidden_layers: int = 32
    num_key_value_heads: int | None = 4
    head_dim: int | None = 256

    @classmethod
    def of_file(cls, values: dict[str, Any]) -> FastWeightConfig:
        """See FastWeightConfig; of a multimodal model the fields of the text part."""
        if values.get("model_type") != cls.outer:
            return super().of_file(values)
        text = values.get("text_config")
        if not isinstance(text, dict):
            raise ModelError(f"config of {cls.outer}: text_config is missing: expected the fields of the text model")
        known = (*OUTER, "text_config", "tie_word_embeddings")
        if unknown := [name for name in values if name not in known]:
            value = reason(repr(values[unknown[0]]), 100)
            raise ModelError(f"config of {cls.outer}: {unknown[0]} is {value}: unknown{nearest(unknown[0], known)}")
        shared: dict[str, Any] = {name: values[name] for name in SHARED if name in values}
        return super().of_file({**text, **shared})


class Qwen3_5GatedDeltaNet(DeltaRuleMixer):
    """Gated DeltaNet with one projection and one convolution for q, k and v; parameters are named as in the release."""

    def __init__(self, config: Qwen3_5TextConfig) -> None:
        one: Any = config
        heads, value_heads = one.linear_num_key_heads, one.linear_num_value_heads
        key, value = one.linear_key_head_dim, one.linear_value_head_dim
        widths = [heads * key, heads * key, value_heads * value]
        super().__init__(heads, value_heads, key, value, one.linear_conv_kernel_dim, {"qkv": sum(widths)})
        self.widths = widths
        self.in_proj_qkv = nn.Linear(one.hidden_size, sum(widths), bias=False)
        self.in_proj_z = nn.Linear(one.hidden_size, widths[2], bias=False)
        self.in_proj_b = nn.Linear(one.hidden_size, value_heads, bias=False)
        self.in_proj_a = nn.Linear(one.hidden_size, value_heads, bias=False)
        self.conv1d = ShortConvolution(sum(widths), one.linear_conv_kernel_dim)
        self.A_log, self.dt_bias = nn.Parameter(torch.empty(value_heads)), nn.Parameter(torch.empty(value_heads))
        self.norm = RMSNorm(value, one.rms_norm_eps)
        self.out_proj = nn.Linear(widths[2], one.hidden_size, bias=False)

    @property
    def output_norm(self) -> RMSNorm:
        return self.norm

    def project(self, x: Tensor) -> dict[str, Tensor]:
        return {"qkv": without_keeping(self.in_proj_qkv, x)}

    def convolve(
        self, projected: dict[str, Tensor], held: dict[str, Tensor], layout: Layout
    ) -> tuple[list[Tensor], dict[str, short_convolution.Tails]]:
        qkv = projected["qkv"]
        y, tails = self.conv1d(qkv, held.get("qkv"), layout, True, self.fused(qkv))
        return [part.contiguous() for part in y.split(self.widths, -1)], {"qkv": tails}

    def rates(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        step = F.softplus(without_keeping(self.in_proj_a, x).to(dtype) + self.dt_bias.to(dtype))
        return without_keeping(self.in_proj_b, x).to(dtype).sigmoid(), -self.A_log.to(dtype).exp() * step

    @property
    def output_projection(self) -> nn.Module:
        return self.out_proj

    def output_gate(self, x: Tensor) -> Tensor:
        return without_keeping(self.in_proj_z, x)

    def reset_decay(self) -> None:
        """transformers' initial decay: exp(A_log) uniform in (0.01, 16), dt_bias 1."""
        init.copy_(self.A_log, torch.empty_like(self.A_log, dtype=torch.float32).uniform_(0.01, 16).log())
        init.ones_(self.dt_bias)


def _attention(config: Any) -> Attention:
    return attention_of(config, partial(ZeroCentredRMSNorm, eps=config.rms_norm_eps), gate=True)


class Qwen3_5ForCausalLM(HybridForCausalLM):
    """Qwen3.5 with a language-model head."""

    config_class: type[HybridConfig] = Qwen3_5TextConfig
    norm = ZeroCentredRMSNorm
    kinds: ClassVar[dict[str, LayerKind]] = {
        LINEAR: LayerKind(Qwen3_5GatedDeltaNet, BlockNames("linear_attn", NORMS)),
        ATTENTION: LayerKind(_attention, BlockNames("self_attn", NORMS)),
    }
    tensor_names = TensorNames(
        spellings=((r"^model\.language_model\.", "model."),),
        ignored=((r"model\.visual\.", "the vision model (model.visual)"), (r"mtp\.", "multi-token prediction (mtp)")),
    )

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Qwen3_5GatedDeltaNet):
            module.reset_decay()
