"""Gated DeltaNet (arXiv 2412.06464): config, token mixer and model, in fla's format `gated_deltanet`.

Shape legend: N tokens of all documents · D hidden size · H heads of q and k · J heads of v · K width of a head's keys.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from refine.models.attention.fla import attention_or
from refine.models.configuration import FlaConfig, check
from refine.models.delta.mixer import DeltaMixer
from refine.models.delta.wide_values import WideValuesConfig
from refine.models.language_model import FastWeightLanguageModel
from refine.models.token_mixer import TokenMixer
from refine.ops.made_again import without_keeping


class GatedDeltaNetConfig(WideValuesConfig):
    """config.json of fla's `gated_deltanet`; fields and defaults are fla's. `WideValuesConfig` has the shared ones."""

    model_type = "gated_deltanet"
    num_v_heads: int | None = None
    allow_neg_eigval: bool = False
    use_gate: bool = True
    output_gate_activation: str = "swish"

    def refuse_unsupported(self) -> None:
        """Raises ModelError that names a field whose value is not implemented or not possible."""
        super().refuse_unsupported()
        check(self, "output_gate_activation", ("swish", "silu", "sigmoid"))


class GatedDeltaNet(DeltaMixer):
    """The delta rule with decay: beta = sigmoid(b_proj x), decay exp(−exp(A_log) softplus(a_proj x + dt_bias))."""

    def __init__(
        self,
        hidden: int,
        heads: int,
        value_heads: int,
        key: int,
        value: int,
        conv_size: int,
        norm_eps: float,
        gate: str | None = "swish",
        negative: bool = False,
        steps: int = 1,
        forgets: bool = True,
    ) -> None:
        super().__init__(hidden, heads, value_heads, key, value, conv_size, gate is not None, norm_eps, steps)
        self.negative, self.forgets = negative, forgets
        self.gate_activation = "sigmoid" if gate == "sigmoid" else "silu"
        if forgets:
            self.a_proj = nn.Linear(hidden, value_heads, bias=False)
        self.b_proj = nn.Linear(hidden, steps * value_heads, bias=False)
        if forgets:
            self.A_log = nn.Parameter(torch.empty(value_heads))
            self.dt_bias = nn.Parameter(torch.empty(value_heads))

    def rates(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """beta [N, steps J], log decay [N, J]; None where nothing is forgotten."""
        beta = without_keeping(self.b_proj, x).to(dtype).sigmoid()
        beta = beta * 2 if self.negative else beta
        if not self.forgets:
            return beta, None
        rate = without_keeping(self.a_proj, x).to(dtype) + self.dt_bias.to(dtype)
        return beta, -self.A_log.to(dtype).exp() * F.softplus(rate)

    def reset_decay(self) -> None:
        """fla's initial decay: exp(A_log) uniform in (0, 16), softplus(dt_bias) log-uniform in (0.001, 0.1)."""
        if not self.forgets:
            return
        rate = torch.empty_like(self.A_log, dtype=torch.float32).uniform_(0, 16).clamp_(min=1e-4)
        init.copy_(self.A_log, rate.log())
        reset_dt_bias(self.dt_bias)


def reset_dt_bias(dt_bias: nn.Parameter) -> None:
    """fla's initial values: softplus(dt_bias) is log-uniform in (0.001, 0.1)."""
    step = torch.empty_like(dt_bias, dtype=torch.float32).uniform_(math.log(0.001), math.log(0.1)).exp()
    init.copy_(dt_bias, step + torch.log(-torch.expm1(-step)))


def _fast_weights(config: GatedDeltaNetConfig) -> GatedDeltaNet:
    return GatedDeltaNet(
        *config.layer_sizes,
        gate=config.output_gate_activation if config.use_gate else None,
        negative=config.allow_neg_eigval,
    )


class GatedDeltaNetForCausalLM(FastWeightLanguageModel):
    """Gated DeltaNet with a language-model head."""

    config_class: type[FlaConfig] = GatedDeltaNetConfig

    def make_mixer(self, config: Any, layer: int) -> TokenMixer:
        return attention_or(_fast_weights, config, layer)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GatedDeltaNet):
            module.reset_decay()
