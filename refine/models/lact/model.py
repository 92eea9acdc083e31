"""LaCT (arXiv 2505.23884): config and model, in the format of the public release, `lact_swiglu`.

Shape legend: D hidden size · H fast heads · K, E outer and inner width of the fast MLP.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import initialization as init

from refine.models.configuration import FlaConfig, check
from refine.models.lact.mixer import Lact, LowRank
from refine.models.language_model import FastWeightLanguageModel


class LactConfig(FlaConfig):
    """config.json of the release's `lact_swiglu`; fields and defaults are the release's."""

    model_type = "lact_swiglu"
    num_attn_heads: int = 32
    num_lact_heads: int = 4
    inter_multi: int | float = 1
    qkv_bias: bool = False
    attn_qk_norm: bool = False
    lact_chunk_size: int = 2048
    use_muon: bool = False
    lr_dim: int = 1
    qkv_silu: bool = True
    no_v_silu: bool = False
    lr_parameterization: str = "mamba"
    learnable_ttt_scale: bool = True
    use_momentum: bool = True
    ttt_loss_type: str = "dot_product"
    ttt_prenorm: bool = False
    ttt_nope: bool = False
    w0_w2_low_rank: int = -1
    fw_init_gain: float = 0.5
    window_size: int = 2048
    rope_theta: float = 10000.0
    initializer_range: float = 0.006
    last_layer_fuse_norm: bool = True
    use_fused_kernel: bool = False
    fp32_states: bool = False  # has no effect: states are at least float32
    muon_dtype: str | None = None  # not in the release: "bfloat16" for Muon as published, see Rule.muon_dtype

    def refuse_unsupported(self) -> None:
        """Raises ModelError that names a field whose value is not implemented or not possible."""
        super().refuse_unsupported()
        check(self, "lr_dim", (1,), "only one learning rate a token, head and weight is implemented")
        check(self, "lr_parameterization", ("mamba",))
        check(self, "ttt_loss_type", ("dot_product",))
        check(self, "muon_dtype", (None, "bfloat16", "float32", "float64"))
        for name in ("num_attn_heads", "num_lact_heads", "lact_chunk_size", "window_size"):
            value = getattr(self, name)
            positive = isinstance(value, int) and not isinstance(value, bool) and value > 0
            self.require(positive, name, "expected a whole number above 0")
        divides = f"expected a divisor of {self.hidden_size} (hidden_size)"
        self.require(self.hidden_size % self.num_lact_heads == 0, "num_lact_heads", divides)
        even = self.hidden_size % (2 * self.num_attn_heads) == 0
        self.require(even, "num_attn_heads", f"{divides} with heads of even width")
        inner = self.hidden_size // self.num_lact_heads * self.inter_multi
        self.require(inner >= 1, "inter_multi", "the fast MLP would have no inner width")
        rank = isinstance(self.w0_w2_low_rank, int)
        self.require(rank, "w0_w2_low_rank", "expected a whole number; 0 or below means full matrices")
        scaling = getattr(self, "rope_parameters", None)  # transformers' name for rope_scaling
        if scaling:
            raise self.refusal("rope_scaling", "only None is implemented", scaling)
        positive = isinstance(self.rope_theta, (int, float)) and self.rope_theta > 0
        self.require(positive, "rope_theta", "expected a number above 0")

    def to_dict(self) -> dict[str, Any]:
        """The fields of config.json; `muon_dtype` only if it is set, so that the format stays the release's."""
        return {name: value for name, value in super().to_dict().items() if name != "muon_dtype" or value is not None}

    def memory_shape(self) -> str:
        """The dimensions of a memory, as text. Part of `signature`."""
        return (
            f"layers {self.num_hidden_layers}, attention heads {self.num_attn_heads}, "
            f"fast heads {self.num_lact_heads}, hidden {self.hidden_size}, fast inner times {self.inter_multi}, "
            f"chunk {self.lact_chunk_size}, "
            f"window {self.window_size}, momentum {self.use_momentum}, prenorm {self.ttt_prenorm}"
        )


class LactForCausalLM(FastWeightLanguageModel):
    """LaCT with a language-model head."""

    config_class = LactConfig

    def make_mixer(self, config: Any, layer: int) -> Lact:
        return Lact(config)

    def _init_weights(self, module: nn.Module) -> None:
        """Linear layers and embeddings as in every model; fast weights with variance 1 / width, as the release does."""
        super()._init_weights(module)
        if isinstance(module, LowRank):
            init.normal_(module.w_left, std=module.gain * module.w_left.shape[-1] ** -0.5)
            init.normal_(module.w_right, std=module.gain * module.w_right.shape[-1] ** -0.5)
        if isinstance(module, Lact):
            full = [w for w in (module.w0, module.w1, module.w2) if isinstance(w, nn.Parameter)]
            for weight in full:
                init.normal_(weight, std=weight.shape[-1] ** -0.5)
            init.ones_(module.qk_scale)
            init.zeros_(module.qk_offset)
