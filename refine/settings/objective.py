"""Settings of one REFINE step (METHOD: select, roll out, reward, advantage, loss)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from refine.settings.base import Section


class ObjectiveSettings(Section):
    """Every option of a REFINE step; the defaults are the paper's."""

    positions: int = Field(8, ge=1, description="c: positions chosen in each document")
    rollout_length: int = Field(5, ge=1, description="k: tokens of a rollout")
    rollouts: int = Field(1, ge=1, description="n: rollouts at each position")
    reward: Literal["cosine", "binary", "hybrid"] = Field("cosine", description="the reward that is optimised")
    selection: Literal["entropy", "uniform", "argmax", "argmin"] = Field(
        "entropy", description="how positions are chosen"
    )
    selection_temperature: float = Field(
        1.0, gt=0, description="temperature of the softmax over smoothed entropies [nats]"
    )
    min_prefix: int = Field(20, ge=1, description="tokens read before the first admissible position")
    group: Literal["sequence", "position"] = Field(
        "sequence", description="whose rollouts are compared for the advantage"
    )
    temperature: float = Field(1.0, gt=0, description="temperature that rollouts are sampled and scored at")
    nsp_weight: float = Field(
        0.2, ge=0, description="λ_RL: weight of the next-sequence loss; 0 leaves next-token training"
    )
    ntp_weight: float = Field(1.0, ge=0, description="λ_SFT: weight of the next-token loss")
    ratio_clip: float = Field(0.2, gt=0, description="policy ratios are clipped to 1 ± this")
    dual_clip: float = Field(3.0, gt=1, description="bound on the ratio's loss where the advantage is negative")

    @model_validator(mode="after")
    def _consistent(self) -> ObjectiveSettings:
        if self.group == "position" and self.rollouts < 2 and self.nsp_weight > 0:
            raise ValueError(
                "group 'position' compares the rollouts of one position and needs rollouts of 2 or more, "
                f"not {self.rollouts}: raise rollouts, or use group 'sequence'"
            )
        if self.nsp_weight == 0 and self.ntp_weight == 0:
            raise ValueError("nsp_weight and ntp_weight are both 0: nothing would be trained")
        return self
