"""Gated DeltaProduct (arXiv 2502.10297): config, token mixer and model, in fla's format `gated_deltaproduct`.

Shape legend: N tokens of all documents · M steps of the delta rule for each token · H heads · K, V widths of a head.

A token has one q, and M of k, v and beta, side by side in their projections: step after step. It forgets before the
first step, and is read after the last:

    S_t = (I − beta_M k_M k_Mᵀ) … (I − beta_1 k_1 k_1ᵀ) a_t S_{t-1} + what the steps write,    o_t = q_tᵀ S_t / sqrt(K)

So its layer is the delta rule on M N tokens, of which the others have decay 1 and no output.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from refine.models.attention.fla import attention_or
from refine.models.delta.gated_delta_net import GatedDeltaNet, GatedDeltaNetForCausalLM
from refine.models.delta.mixer import RuleInputs
from refine.models.delta.trace import States
from refine.models.delta.wide_values import WideValuesConfig
from refine.models.token_mixer import TokenMixer
from refine.ops.delta_rule.rule import CHUNK


class GatedDeltaProductConfig(WideValuesConfig):
    """config.json of fla's `gated_deltaproduct`; fields and defaults are fla's, the shared ones in WideValuesConfig."""

    model_type = "gated_deltaproduct"
    use_output_gate: bool = True
    use_forget_gate: bool = False
    allow_neg_eigval: bool = False
    num_householder: int = 1

    def refuse_unsupported(self) -> None:
        """Raises ModelError that names a field whose value is not implemented or not possible."""
        super().refuse_unsupported()
        steps = self.num_householder
        fits = isinstance(steps, int) and not isinstance(steps, bool) and 0 < steps <= CHUNK
        self.require(fits, "num_householder", f"expected a whole number from 1 to {CHUNK}")
        for name in ("use_output_gate", "use_forget_gate", "allow_neg_eigval"):
            self.require(isinstance(getattr(self, name), bool), name, "expected true or false")


class GatedDeltaProduct(GatedDeltaNet):
    """Gated DeltaNet, or DeltaNet where nothing is forgotten, with M steps for each token."""

    def __init__(self, config: GatedDeltaProductConfig) -> None:
        super().__init__(
            *config.layer_sizes,
            gate="swish" if config.use_output_gate else None,
            negative=config.allow_neg_eigval,
            steps=config.num_householder,
            forgets=config.use_forget_gate,
        )

    def apply_rule(self, convolved: tuple[Tensor, Tensor, Tensor], given: RuleInputs) -> tuple[Tensor, States]:
        q, k, v = self.by_head(convolved)
        more, log_decay = self.steps - 1, given.log_decay
        q = F.pad(self.normalised(q)[:, None], (0, 0, 0, 0, more, 0)).flatten(0, 1)  # the last step asks
        if log_decay is not None:
            log_decay = F.pad(log_decay[:, None], (0, 0, 0, more)).flatten(0, 1)  # the first forgets
        beta, layout = given.beta.reshape(-1, self.value_heads), given.layout.times(self.steps)
        steps = given._replace(beta=beta, log_decay=log_decay, layout=layout)
        o, states = self._rule(q, self.normalised(k), v, steps)
        return o.unflatten(0, (-1, self.steps))[:, -1], states


class GatedDeltaProductForCausalLM(GatedDeltaNetForCausalLM):
    """Gated DeltaProduct with a language-model head."""

    config_class = GatedDeltaProductConfig

    def make_mixer(self, config: Any, layer: int) -> TokenMixer:
        return attention_or(GatedDeltaProduct, config, layer)
