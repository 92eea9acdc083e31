"""Comba (arXiv 2506.02475): config, token mixer and model, in flash-linear-attention's format `comba`.

Shape legend: N tokens of all documents · D hidden size · H heads of q and k · J heads of v · K, V widths of a head.

A token reads what it removes with the key p = c k, c = sigmoid(decay), from the state before it forgets, and asks with
q − D p. q, k and p have unit length after that:

    S_t = a_t S_{t-1} + k_t ⊗ beta_t (v_t − p_tᵀ S_{t-1}),    o_t = q_tᵀ S_t / sqrt(K)

fla's kernels and its `naive_chunk_comba` compute this; its `naive_recurrent_comba` reads the state after it forgot.

p is a number times k, p = r k, where r is 1 but for the epsilon of unit length. So this is the gated delta rule with

    beta' = beta r / a,    v' = v a / r,

which writes beta' (v' − a kᵀ S) = beta (v − r kᵀ S). Because it divides by a, a is at least exp(FLOOR): any rounding
loses what is left of a state after that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from refine.models.attention.fla import attention_or
from refine.models.delta.gated_delta_net import GatedDeltaNet, GatedDeltaNetForCausalLM
from refine.models.delta.mixer import RuleInputs
from refine.models.delta.trace import States
from refine.models.delta.wide_values import WideValuesConfig
from refine.models.token_mixer import TokenMixer
from refine.ops.delta_rule import fla
from refine.ops.delta_rule import rule as delta_rule

FLOOR = -60.0  # 1e-26: far from where float32 ends, on both sides
LEAST_DECAY = -40.0  # of the parameter: below, nothing is removed either way, and exp(80) is not infinite yet
EPSILON = 1e-6  # of unit length


class CombaConfig(WideValuesConfig):
    """config.json of fla's `comba`; fields and defaults are fla's. `WideValuesConfig` has the shared ones.

    `use_output_correction`, `use_inner_decay` and `correction_factor` change nothing, as in fla: `D` and `decay` are
    always there, and begin as 1.
    """

    model_type = "comba"
    num_v_heads: int | None = None
    use_output_gate: bool = True
    use_output_correction: bool = True
    use_inner_decay: bool = True
    correction_factor: float = 1.0

    def refuse_unsupported(self) -> None:
        """Raises ModelError that names a field whose value is not implemented or not possible."""
        super().refuse_unsupported()
        self.require(isinstance(self.use_output_gate, bool), "use_output_gate", "expected true or false")


class Comba(GatedDeltaNet):
    """Gated DeltaNet that removes before it forgets, with a corrected query and a sigmoid at the output gate."""

    uses_kernels = False

    def __init__(self, config: CombaConfig) -> None:
        super().__init__(*config.layer_sizes, gate="sigmoid" if config.use_output_gate else None)
        self.decay = nn.Parameter(torch.ones(config.num_heads))
        self.D = nn.Parameter(torch.ones(config.num_heads))

    def apply_rule(self, convolved: tuple[Tensor, Tensor, Tensor], given: RuleInputs) -> tuple[Tensor, States]:
        assert given.log_decay is not None
        fla.torch_alone("Comba", given.layout.device)
        q, k, v = self.by_head(convolved)
        decay = self.decay.to(k.dtype)
        q = self.normalised(q - (self.D.to(k.dtype) * decay.sigmoid())[:, None] * k)
        ratio = log_ratio(k, decay).repeat_interleave(self.value_heads // self.heads, 1)
        log_decay = given.log_decay.clamp(min=FLOOR)
        more = ratio.clamp(min=FLOOR) - log_decay
        beta, v = given.beta * more.exp(), v * more.neg().exp()[..., None]
        return delta_rule.read(q, self.normalised(k), v, beta, log_decay, given.state, given.layout, given.sharing)


def log_ratio(k: Tensor, decay: Tensor) -> Tensor:
    """k [N, H, K] before it has unit length, decay [H] -> log r [N, H], where unit(c k) = r unit(k).

    With c = sigmoid(decay), r² = c² (k² + epsilon) / (c² k² + epsilon), in a form that cancels nothing near r = 1.
    """
    inverse = decay.clamp(min=LEAST_DECAY).neg().exp()  # 1 / c − 1
    return -torch.log1p(EPSILON / (torch.linalg.vecdot(k, k) + EPSILON) * (inverse * (2 + inverse))) / 2


class CombaForCausalLM(GatedDeltaNetForCausalLM):
    """Comba with a language-model head."""

    config_class = CombaConfig

    def make_mixer(self, config: Any, layer: int) -> TokenMixer:
        return attention_or(Comba, config, layer)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Comba):
            init.ones_(module.decay)
            init.ones_(module.D)
