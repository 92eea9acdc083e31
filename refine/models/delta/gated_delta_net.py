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

from refine.models.attention.fla import attention_layers, memory_text
from refine.models.attention.mixer import Attention
from refine.models.configuration import FlaConfig, check
from refine.models.delta.mixer import DeltaMixer
from refine.models.language_model import FastWeightLanguageModel
from refine.models.token_mixer import TokenMixer
from refine.ops.rms_norm import unit_length


class GroupedValuesConfig(FlaConfig):
    """The fields that fla's `gated_deltanet` and `kda` share: grouped heads of values, of a width of their own."""

    num_heads: int = 16
    num_v_heads: int | None = None
    head_dim: int = 128
    expand_v: float = 1.0
    use_short_conv: bool = True
    conv_size: int = 4
    allow_neg_eigval: bool = False

    def refuse_unsupported(self) -> None:
        """Raises ModelError that names a field whose value is not implemented or not possible."""
        super().refuse_unsupported()
        self.require(
            isinstance(self.head_dim, int) and self.head_dim > 0, "head_dim", "expected a whole number above 0"
        )
        groups = self.num_v_heads is None or (self.num_v_heads > 0 and self.num_v_heads % self.num_heads == 0)
        self.require(groups, "num_v_heads", f"expected a multiple of {self.num_heads} (num_heads)")
        width = self.head_dim * self.expand_v
        self.require(
            width > 0 and math.isclose(width, int(width), rel_tol=1e-5),
            "expand_v",
            f"{self.head_dim} (head_dim) times this must be a whole number above 0",
        )

    def refuse_attention(self) -> None:
        """Raises ModelError that names a field of `attn` that is unknown or not possible."""
        attention_layers(self)

    def memory_shape(self) -> str:
        """The dimensions of a memory, as text. Part of `signature`."""
        heads = f"heads {self.num_heads}, value heads {self.num_v_heads or self.num_heads}"
        widths = f"keys {self.head_dim}, values {int(self.head_dim * self.expand_v)}"
        convolution = f"convolution {self.conv_size * self.use_short_conv}"
        return f"layers {self.num_hidden_layers}, {heads}, {widths}, {convolution}{memory_text(self)}"


class GatedDeltaNetConfig(GroupedValuesConfig):
    """config.json of fla's `gated_deltanet`; fields and defaults are fla's. `FlaConfig` has the shared ones."""

    model_type = "gated_deltanet"
    num_hidden_layers: int = 21
    num_heads: int = 6
    head_dim: int = 256
    expand_v: float = 2.0
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
        self.negative, self.output_gate, self.forgets = negative, gate, forgets
        if forgets:
            self.a_proj = nn.Linear(hidden, value_heads, bias=False)
        self.b_proj = nn.Linear(hidden, steps * value_heads, bias=False)
        if forgets:
            self.A_log = nn.Parameter(torch.empty(value_heads))
            self.dt_bias = nn.Parameter(torch.empty(value_heads))

    def normalised(self, x: Tensor) -> Tensor:
        """q or k [N, H, K], after SiLU -> unit length."""
        return unit_length(x)

    def rates(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """beta [N, steps J], log decay [N, J]; None where nothing is forgotten."""
        beta = self.b_proj(x).to(dtype).sigmoid()
        beta = beta * 2 if self.negative else beta
        if not self.forgets:
            return beta, None
        rate = self.a_proj(x).to(dtype) + self.dt_bias.to(dtype)
        return beta, -self.A_log.to(dtype).exp() * F.softplus(rate)

    def gate(self, x: Tensor) -> Tensor:
        """Activation of the output gate."""
        return x.sigmoid() if self.output_gate == "sigmoid" else F.silu(x)

    def reset_decay(self) -> None:
        """fla's initial decay: exp(A_log) uniform in (0, 16), softplus(dt_bias) log-uniform in (0.001, 0.1)."""
        if not self.forgets:
            return
        rate = torch.empty_like(self.A_log, dtype=torch.float32).uniform_(0, 16).clamp_(min=1e-4)
        init.copy_(self.A_log, rate.log())
        step = torch.empty_like(self.dt_bias, dtype=torch.float32).uniform_(math.log(0.001), math.log(0.1)).exp()
        init.copy_(self.dt_bias, step + torch.log(-torch.expm1(-step)))


class GatedDeltaNetForCausalLM(FastWeightLanguageModel):
    """Gated DeltaNet with a language-model head."""

    config_class: type[FlaConfig] = GatedDeltaNetConfig

    def make_mixer(self, config: Any, layer: int) -> TokenMixer:
        if (options := attention_layers(config).get(layer)) is not None:
            return Attention(options)
        return GatedDeltaNet(
            config.hidden_size,
            config.num_heads,
            config.num_v_heads or config.num_heads,
            config.head_dim,
            int(config.head_dim * config.expand_v),
            config.conv_size if config.use_short_conv else 0,
            config.norm_eps,
            gate=config.output_gate_activation if config.use_gate else None,
            negative=config.allow_neg_eigval,
        )

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GatedDeltaNet):
            module.reset_decay()
