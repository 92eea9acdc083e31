"""DeltaNet (arXiv 2406.06484): config, token mixer and model, in flash-linear-attention's format `delta_net`.

Shape legend: N tokens of all documents · D hidden size · H heads · K width of a head's keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refine.models.attention.fla import attention_layers, attention_or, memory_text
from refine.models.configuration import FlaConfig, check
from refine.models.delta.mixer import DeltaMixer
from refine.models.language_model import FastWeightLanguageModel
from refine.models.token_mixer import TokenMixer
from refine.models.token_mixer import at_least_float32 as wide
from refine.ops.made_again import without_keeping


class DeltaNetConfig(FlaConfig):
    """config.json of fla's `delta_net`; fields and defaults are fla's. See `FlaConfig` for the shared ones."""

    model_type = "delta_net"
    num_heads: int = 16
    expand_k: float = 1.0
    expand_v: float = 1.0
    use_gate: bool = False
    use_short_conv: bool = True
    conv_size: int = 4
    use_beta: bool = True
    use_output_norm: bool = True
    qk_norm: str = "l2"
    qk_activation: str = "silu"
    allow_neg_eigval: bool = False

    def refuse_unsupported(self) -> None:
        """Raises ModelError that names a field whose value is not implemented or not possible."""
        super().refuse_unsupported()
        check(self, "use_output_norm", (True,))
        check(self, "qk_norm", ("l2", "sum"))
        check(self, "qk_activation", ("silu", "relu", "elu", "identity"))
        for field in ("expand_k", "expand_v"):
            width = self.hidden_size * getattr(self, field)
            fits = width > 0 and width == int(width) and int(width) % self.num_heads == 0
            rule = f"{self.hidden_size} (hidden_size) times this must be a multiple of {self.num_heads} (num_heads)"
            self.require(fits, field, rule)

    def refuse_attention(self) -> None:
        """Raises ModelError that names a field of `attn` that is unknown or not possible."""
        attention_layers(self)

    def memory_shape(self) -> str:
        """The dimensions of a memory, as text. Part of `signature`."""
        key, value = round(self.hidden_size * self.expand_k), round(self.hidden_size * self.expand_v)
        width = self.conv_size if self.use_short_conv else 0
        sizes = f"heads {self.num_heads}, keys {key}, values {value}, convolution {width}"
        return f"layers {self.num_hidden_layers}, {sizes}{memory_text(self)}"


class DeltaNet(DeltaMixer):
    """The delta rule without decay: beta = sigmoid(b_proj x), or twice that if negative eigenvalues are allowed."""

    def __init__(self, config: DeltaNetConfig) -> None:
        heads = config.num_heads
        key, value = (round(config.hidden_size * expand) // heads for expand in (config.expand_k, config.expand_v))
        conv_size = config.conv_size if config.use_short_conv else 0
        super().__init__(config.hidden_size, heads, heads, key, value, conv_size, config.use_gate, config.norm_eps)
        self.qk_norm, self.qk_activation, self.negative = config.qk_norm, config.qk_activation, config.allow_neg_eigval
        self.silu_keys = config.qk_activation == "silu"
        if config.use_beta:
            self.b_proj = nn.Linear(config.hidden_size, heads, bias=False)

    def normalised(self, x: Tensor) -> Tensor:
        """q or k [N, H, K], after SiLU if that is the activation -> any other activation, then norm."""
        if self.qk_activation == "relu":
            x = F.relu(x)
        elif self.qk_activation == "elu":
            x = F.elu(x.to(wide(x.dtype))) + 1
        if self.qk_norm == "sum":
            return F.normalize(x.to(wide(x.dtype)), p=1, dim=-1, eps=1e-6)
        return super().normalised(x)

    def rates(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, None]:
        """beta [N, H]; no decay."""
        if hasattr(self, "b_proj"):
            beta = without_keeping(self.b_proj, x).to(dtype).sigmoid()
        else:
            beta = torch.ones(x.shape[0], self.heads, dtype=dtype, device=x.device)
        return beta * 2 if self.negative else beta, None


class DeltaNetForCausalLM(FastWeightLanguageModel):
    """DeltaNet with a language-model head."""

    config_class = DeltaNetConfig

    def make_mixer(self, config: Any, layer: int) -> TokenMixer:
        return attention_or(DeltaNet, config, layer)
