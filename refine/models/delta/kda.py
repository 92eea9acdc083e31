"""Kimi Delta Attention (arXiv 2510.26692): config, token mixer and model, in fla's format `kda`.

Shape legend: N tokens of all documents · D hidden size · H heads of q and k · J heads of v · K, V widths of a head.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from refine.models.attention.fla import attention_or
from refine.models.delta.gated_delta_net import reset_dt_bias
from refine.models.delta.mixer import DeltaMixer
from refine.models.delta.wide_values import WideValuesConfig
from refine.models.language_model import FastWeightLanguageModel
from refine.models.token_mixer import TokenMixer
from refine.ops.made_again import without_keeping


class KDAConfig(WideValuesConfig):
    """config.json of fla's `kda`; fields and defaults are fla's. `WideValuesConfig` has the shared ones.

    `lower_bound` chooses the bounded gate. `safe_gate` chooses kernels in fla, and initial weights.
    """

    model_type = "kda"
    num_hidden_layers: int = 24
    num_heads: int = 16
    num_v_heads: int | None = None
    head_dim: int = 128
    expand_v: float = 1.0
    allow_neg_eigval: bool = False
    safe_gate: bool = False
    lower_bound: float | None = None

    def refuse_unsupported(self) -> None:
        """Raises ModelError that names a field whose value is not implemented or not possible."""
        super().refuse_unsupported()
        bound = self.lower_bound
        number = isinstance(bound, (int, float)) and not isinstance(bound, bool) and -math.inf < bound < 0
        self.require(
            bound is None or number, "lower_bound", "expected a number below 0, or null for the unbounded gate"
        )
        self.require(isinstance(self.safe_gate, bool), "safe_gate", "expected true or false")
        self.require(not self.safe_gate or bound is not None, "safe_gate", "it needs a lower_bound, such as -5")


class KimiDelta(DeltaMixer):
    """The delta rule with a decay for each key channel; a subclass adds the projections of decay and output gate.

    Log decay of the unbounded gate: −exp(A_log) softplus(raw + dt_bias); of the bounded one, which is another function
    and not a clamp of the first: bound · sigmoid(exp(A_log) (raw + dt_bias)).
    """

    decays_by_channel = True
    gate_activation = "sigmoid"

    def __init__(
        self,
        hidden: int,
        heads: int,
        value_heads: int,
        key: int,
        value: int,
        conv_size: int,
        norm_eps: float,
        bound: float | None = None,
        negative: bool = False,
    ) -> None:
        super().__init__(hidden, heads, value_heads, key, value, conv_size, False, norm_eps)
        self.bound, self.negative = bound, negative
        self.b_proj = nn.Linear(hidden, value_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(self.rate_shape()))
        self.dt_bias = nn.Parameter(torch.empty(value_heads * key))

    def rate_shape(self) -> tuple[int, ...]:
        """The shape of A_log on disk: one number a value head."""
        return (self.value_heads,)

    @abstractmethod
    def raw_decay(self, x: Tensor) -> Tensor:
        """x [N, D] -> [N, J K]."""

    def rates(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """beta [N, J], log decay [N, J, K]."""
        beta = without_keeping(self.b_proj, x).to(dtype).sigmoid()
        raw = (self.raw_decay(x).to(dtype) + self.dt_bias.to(dtype)).unflatten(-1, (self.value_heads, self.key))
        rate = self.A_log.to(dtype).exp().view(-1, 1)
        log_decay = -rate * F.softplus(raw) if self.bound is None else self.bound * (rate * raw).sigmoid()
        return beta * 2 if self.negative else beta, log_decay

    def reset_decay(self, safe: bool = False) -> None:
        """fla's initial decay: exp(A_log) uniform in (1, 16), or 1 with the `safe` gate; softplus(dt_bias) log-uniform
        in (0.001, 0.1)."""
        rate = torch.empty_like(self.A_log, dtype=torch.float32)
        init.copy_(self.A_log, rate.zero_() if safe else rate.uniform_(1, 16).log_())
        reset_dt_bias(self.dt_bias)


class FlaKimiDelta(KimiDelta):
    """KimiDelta with fla's names: f_proj and g_proj are two matrices each, of rank V, and g_proj.1 has a bias."""

    def __init__(self, config: KDAConfig) -> None:
        value_heads, value = config.value_heads, config.value_width
        super().__init__(*config.layer_sizes, config.lower_bound, config.allow_neg_eigval)
        self.f_proj = self._low_rank(config.hidden_size, value, value_heads * config.head_dim, bias=False)
        self.g_proj = self._low_rank(config.hidden_size, value, value_heads * value, bias=True)

    @staticmethod
    def _low_rank(hidden: int, rank: int, out: int, bias: bool) -> nn.Sequential:
        return nn.Sequential(nn.Linear(hidden, rank, bias=False), nn.Linear(rank, out, bias=bias))

    def raw_decay(self, x: Tensor) -> Tensor:
        return without_keeping(self.f_proj, x)

    def output_gate(self, x: Tensor) -> Tensor:
        return without_keeping(self.g_proj, x)


class KDAForCausalLM(FastWeightLanguageModel):
    """Kimi Delta Attention with a language-model head."""

    config_class = KDAConfig

    def make_mixer(self, config: Any, layer: int) -> TokenMixer:
        return attention_or(FlaKimiDelta, config, layer)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, KimiDelta):
            module.reset_decay(self.config.safe_gate)
