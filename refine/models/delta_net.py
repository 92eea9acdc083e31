"""DeltaNet (arXiv 2406.06484): config, token mixer and model, in flash-linear-attention's format `delta_net`.

Shape legend: N tokens of all documents · G documents · R tapped rows · D hidden size · H heads · K, V widths of a head
              W width of the convolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refine.models.configuration import FastWeightConfig, check
from refine.models.language_model import FastWeightLanguageModel
from refine.models.token_mixer import Inputs, Keep, LayerMemory, TensorMemory, TokenMixer, Trace, at_least_float32
from refine.ops import delta_rule, short_convolution
from refine.ops.layout import Layout, Taps
from refine.ops.root_mean_square import RMSNorm


class DeltaNetConfig(FastWeightConfig):
    """config.json of fla's `delta_net`; fields and defaults are fla's. See `FastWeightConfig` for the shared ones."""

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
        """Raises ModelError, naming the field, for what this implementation does not have or what cannot be."""
        super().refuse_unsupported()
        check(self, "use_output_norm", (True,))
        check(self, "qk_norm", ("l2", "sum"))
        check(self, "qk_activation", ("silu", "relu", "elu", "identity"))
        for field in ("expand_k", "expand_v"):
            width = self.hidden_size * getattr(self, field)
            self.require(width == int(width) and int(width) % self.num_heads == 0 and width > 0, field,
                         f"hidden_size {self.hidden_size} times this must be a multiple of num_heads {self.num_heads}")  # fmt: skip

    def memory_shape(self) -> str:
        """The dimensions of a memory, in words."""
        key, value = round(self.hidden_size * self.expand_k), round(self.hidden_size * self.expand_v)
        return (f"layers {self.num_hidden_layers}, heads {self.num_heads}, keys {key}, values {value}, "
                f"convolution {self.conv_size if self.use_short_conv else 0}, vocabulary {self.vocab_size}")  # fmt: skip


class ShortConvolution(nn.Conv1d):
    """Weights of a depthwise causal convolution, [F, 1, W] as fla saves (and initialises) them."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, channels, width, groups=channels, bias=False)

    def forward(  # type: ignore[override]
        self, x: Tensor, tail: Tensor | None, layout: Layout
    ) -> tuple[Tensor, short_convolution.Tails]:
        """x [N, F], tail [G, W - 1, F] -> y [N, F] in at least float32, without activation, and the tails."""
        dtype = at_least_float32(x.dtype)
        return short_convolution.read(x.to(dtype), self.weight[:, 0].to(dtype), None, tail, layout)


class DeltaTrace(Trace):
    """The states of the delta rule and the inputs of the convolutions of one read."""

    def __init__(self, states: delta_rule.ChunkStates, tails: dict[str, short_convolution.Tails]) -> None:
        self.states, self.tails = states, tails

    def tap(self, taps: Taps, inputs: Inputs | None) -> TensorMemory:
        tails = {name: tails.at(taps) for name, tails in self.tails.items()}
        return TensorMemory({"state": self.states.at(taps), **tails})


class DeltaNet(TokenMixer):
    """q, k, v = convolved, SiLU; q and k normalised; the delta rule; per-head norm (gated); output projection."""

    def __init__(self, config: DeltaNetConfig) -> None:
        super().__init__()
        self.heads, self.key, self.value = config.num_heads, round(config.hidden_size * config.expand_k), round(
            config.hidden_size * config.expand_v)  # fmt: skip
        self.qk_norm, self.qk_activation, self.negative = config.qk_norm, config.qk_activation, config.allow_neg_eigval
        self.conv_size = config.conv_size if config.use_short_conv else 0
        self.q_proj = nn.Linear(config.hidden_size, self.key, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.key, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.value, bias=False)
        if config.use_beta:
            self.b_proj = nn.Linear(config.hidden_size, self.heads, bias=False)
        if self.conv_size:
            self.q_conv1d = ShortConvolution(self.key, self.conv_size)
            self.k_conv1d = ShortConvolution(self.key, self.conv_size)
            self.v_conv1d = ShortConvolution(self.value, self.conv_size)
        if config.use_gate:
            self.g_proj = nn.Linear(config.hidden_size, self.value, bias=False)
        self.o_norm = RMSNorm(self.value // self.heads, config.norm_eps)
        self.o_proj = nn.Linear(self.value, config.hidden_size, bias=False)

    def forward(self, x: Tensor, layout: Layout, memory: LayerMemory | None, keep: Keep) -> tuple[Tensor, Trace]:
        held = memory.tensors() if memory is not None else {}
        (q, k, v), tails = self._project(x, held, layout)
        dtype = at_least_float32(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            q, k = (self._normalise(y.to(dtype).view(layout.tokens, self.heads, -1)) for y in (q, k))
            v = F.silu(v.to(dtype)).view(layout.tokens, self.heads, -1)
            o, states = delta_rule.read(q, k, v, self._beta(x, dtype), None, held.get("state"), layout)
            o = self.o_norm(o)
        return self._output(x, o), DeltaTrace(states, tails)

    def fresh(self, rows: int, device: torch.device, dtype: torch.dtype) -> TensorMemory:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(rows, *shape, device=device, dtype=at_least_float32(dtype))

        tensors = {"state": zeros(self.heads, self.key // self.heads, self.value // self.heads)}
        if self.conv_size:
            widths = {"q": self.key, "k": self.key, "v": self.value}
            tensors |= {name: zeros(self.conv_size - 1, width) for name, width in widths.items()}
        return TensorMemory(tensors)

    def _project(self, x: Tensor, held: dict[str, Tensor], layout: Layout) -> tuple[list[Tensor], dict[str, Any]]:
        projected = {"q": self.q_proj(x), "k": self.k_proj(x), "v": self.v_proj(x)}
        if not self.conv_size:
            return list(projected.values()), {}
        convolutions = {"q": self.q_conv1d, "k": self.k_conv1d, "v": self.v_conv1d}
        both = {name: convolutions[name](y, held.get(name), layout) for name, y in projected.items()}
        return [y for y, _ in both.values()], {name: tails for name, (_, tails) in both.items()}

    def _normalise(self, x: Tensor) -> Tensor:
        """Activation and norm of q or k [N, H, K]."""
        if self.qk_activation == "silu":
            x = F.silu(x)
        elif self.qk_activation == "relu":
            x = F.relu(x)
        elif self.qk_activation == "elu":
            x = F.elu(x) + 1
        if self.qk_norm == "sum":
            return F.normalize(x, p=1, dim=-1, eps=1e-6)
        return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)

    def _beta(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """[N, H]: how much of the error each token writes."""
        beta = (
            self.b_proj(x).to(dtype).sigmoid()
            if hasattr(self, "b_proj")
            else x.new_ones(x.shape[0], self.heads, dtype=dtype)
        )
        return beta * 2 if self.negative else beta

    def _output(self, x: Tensor, o: Tensor) -> Tensor:
        """o [N, H, V], normalised -> [N, D]."""
        if hasattr(self, "g_proj"):
            o = o * F.silu(self.g_proj(x).to(o.dtype)).view(o.shape)
        return self.o_proj(o.flatten(1).to(x.dtype))


class DeltaNetForCausalLM(FastWeightLanguageModel):
    """DeltaNet with a language-model head."""

    config_class = DeltaNetConfig

    def make_mixer(self, config: Any) -> DeltaNet:
        return DeltaNet(config)
