"""OLMo Hybrid (`olmo_hybrid`): Gated DeltaNet with beta up to 2; every fourth layer attends, without positions.

Linear layers have their norms before mixer and MLP, attention layers after them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, ClassVar

import torch

from refine.models.attention.mixer import Attention
from refine.models.blocks import BlockNames
from refine.models.delta.gated_delta_net import GatedDeltaNet
from refine.models.hybrids.configuration import ATTENTION, LINEAR, HybridConfig
from refine.models.hybrids.model import HybridForCausalLM, LayerKind, attention_of
from refine.models.hybrids.tensor_names import TensorNames
from refine.models.weights import Shapes, Stored
from refine.ops.rms_norm import RMSNorm

OUTPUT_NORM_EPS = 1e-5  # of o_norm; rms_norm_eps does not change it


class OlmoHybridConfig(HybridConfig):
    """config.json of `olmo_hybrid`; fields and defaults are transformers'. rope_parameters {"rope_theta": null} is
    attention without positions; without the field, positions are rotary with theta 10000."""

    model_type = "olmo_hybrid"

    vocab_size: int = 100352
    hidden_size: int = 3840
    intermediate_size: int | None = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 30
    max_position_embeddings: int = 65536
    pad_token_id: int | None = 100277
    eos_token_id: int | list[int] | None = 100257
    linear_num_key_heads: int | None = None
    linear_num_value_heads: int | None = None
    linear_key_head_dim: int | None = None
    linear_value_head_dim: int | None = None
    linear_allow_neg_eigval: bool = True
    linear_a_log_min: float = 0.0
    linear_a_log_max: float = 16.0
    linear_dt_min: float = 0.001
    linear_dt_max: float = 0.1
    linear_dt_init_floor: float = 1e-4

    def set_defaults(self, more: dict[str, Any]) -> None:
        """Heads as in attention, keys of 0.75 hidden_size / heads, values twice as wide; at least one layer attends."""
        if self.layer_types is None and self._whole("num_hidden_layers") and self.num_hidden_layers < 4:
            self.layer_types = [LINEAR] * (self.num_hidden_layers - 1) + [ATTENTION]
        super().set_defaults(more)
        for name in ("linear_num_key_heads", "linear_num_value_heads"):
            if getattr(self, name) is None:
                setattr(self, name, self.num_attention_heads)
        if self.linear_key_head_dim is None and self._whole("hidden_size") and self._whole("linear_num_key_heads"):
            self.linear_key_head_dim = int(0.75 * self.hidden_size / self.linear_num_key_heads)  # type: ignore[operator]
        if self.linear_value_head_dim is None and self._whole("linear_key_head_dim"):
            self.linear_value_head_dim = 2 * self.linear_key_head_dim  # type: ignore[operator]

    def refuse_unsupported(self) -> None:
        """Raises ModelError that names a field whose value is not implemented or not possible."""
        super().refuse_unsupported()
        self.require(
            isinstance(self.linear_allow_neg_eigval, bool), "linear_allow_neg_eigval", "expected true or false"
        )
        if self.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0:
            value = self.rope_parameters["partial_rotary_factor"]
            raise self.refusal("rope_parameters.partial_rotary_factor", "positions turn whole heads here", value)


def _linear(config: Any) -> GatedDeltaNet:
    return GatedDeltaNet(
        config.hidden_size,
        config.linear_num_key_heads,
        config.linear_num_value_heads,
        config.linear_key_head_dim,
        config.linear_value_head_dim,
        config.linear_conv_kernel_dim,
        OUTPUT_NORM_EPS,
        negative=config.linear_allow_neg_eigval,
    )


def _attention(config: Any) -> Attention:
    return attention_of(config, partial(RMSNorm, eps=config.rms_norm_eps), norm_over="all")


@dataclass(frozen=True)
class _Rows(Stored):
    """Rows of several stored tensors, laid end to end, from row `first`; as many as `shape` says."""

    parts: tuple[Stored, ...] = ()
    first: int = 0

    def tensor(self) -> torch.Tensor:
        return torch.cat([part.tensor() for part in self.parts])[self.first : self.first + self.shape[0]].clone()


class OlmoHybridForCausalLM(HybridForCausalLM):
    """OLMo Hybrid with a language-model head."""

    config_class = OlmoHybridConfig
    kinds: ClassVar[dict[str, LayerKind]] = {
        LINEAR: LayerKind(_linear, BlockNames("linear_attn", ("input_layernorm", "post_attention_layernorm"))),
        ATTENTION: LayerKind(
            _attention, BlockNames("self_attn", ("post_attention_layernorm", "post_feedforward_layernorm"), after=True)
        ),
    }
    tensor_names = TensorNames(
        spellings=(
            (r"\.attention_layer_norm\.", ".input_layernorm."),
            (r"\.feedforward_layer_norm\.", ".post_attention_layernorm."),
        )
    )

    @classmethod
    def regroup(cls, stored: dict[str, Stored], shapes: Shapes) -> dict[str, Stored]:
        """transformers 5.23 saves the convolutions of q, k and v cut into three equal parts, whatever their widths."""
        mended = dict(stored)
        for first in [name for name in stored if name.endswith(".q_conv1d.weight")]:
            names = [first.replace(".q_conv1d.", f".{one}_conv1d.") for one in "qkv"]
            if not all(name in stored and name in shapes for name in names):
                continue
            parts, wanted = tuple(stored[name] for name in names), [shapes[name] for name in names]
            total = sum(shape[0] for shape in wanted)
            equal = [len(part) for part in torch.empty(total, device="meta").chunk(3)]
            if [part.shape for part in parts] == [(rows, *wanted[0][1:]) for rows in equal] != wanted:
                starts = accumulate((shape[0] for shape in wanted), initial=0)
                for name, part, shape, start in zip(names, parts, wanted, starts, strict=False):
                    mended[name] = _Rows(part.path, part.name, shape, part.dtype, parts, start)
        return mended
