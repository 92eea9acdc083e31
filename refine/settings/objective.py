"""Settings of one REFINE step (docs/method.md: Positions, Rollouts, Rewards, Advantages, Loss)."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from refine.errors import nearest, reason
from refine.settings.base import MOST_ROLLOUTS, MOST_TOKENS, Section

REWARDS = ("cosine", "binary", "hybrid")
_EXTERNAL = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")  # package.module:function


def is_external_reward(reward: str) -> bool:
    """Whether the setting names a function from outside (refine/objective/external_rewards.py)."""
    return reward not in REWARDS


def reward_kind(reward: str) -> str:
    """The name of a reward in metrics and results: for ``package.module:function``, the function's."""
    return re.split("[:.]", reward)[-1]


class ObjectiveSettings(Section):
    """All options of a REFINE step, with the paper's values as defaults."""

    positions: int = Field(8, ge=1, le=MOST_ROLLOUTS, description="c: positions selected in each document")
    rollout_length: int = Field(5, ge=1, le=MOST_ROLLOUTS, description="k: length of a rollout [tokens]")
    rollouts: int = Field(1, ge=1, le=MOST_ROLLOUTS, description="n: rollouts at each position")
    reward: str = Field(
        "cosine", description="reward to optimise: cosine, binary, hybrid, or a function as package.module:function"
    )
    selection: Literal["entropy", "uniform", "argmax", "argmin", "marked", "recall"] = Field(
        "entropy", description="how positions are selected; marked: at the document's marks; recall: before repeats"
    )
    fallback: Literal["none", "entropy"] = Field(
        "none", description="positions of a document in which `marked` or `recall` finds none: none, or by entropy"
    )
    selection_temperature: float = Field(
        1.0, gt=0, description="temperature of the softmax over smoothed entropies [nats]"
    )
    min_prefix: int = Field(
        20, ge=1, le=MOST_TOKENS, description="tokens before the first position that can be selected"
    )
    group: Literal["sequence", "position"] = Field(
        "sequence", description="rollouts that are compared for an advantage: of a sequence, or of a position"
    )
    temperature: float = Field(1.0, gt=0, description="temperature that samples and scores rollouts")
    nsp_weight: float = Field(
        0.2, ge=0, description="λ_RL: weight of the next-sequence loss; 0 is plain next-token training"
    )
    ntp_weight: float = Field(1.0, ge=0, description="λ_SFT: weight of the next-token loss")
    focus_weight: float = Field(
        0.0, ge=0, description="weight of the cross-entropy of the k true tokens after each position; 0: none"
    )
    ratio_clip: float = Field(0.2, gt=0, description="policy ratios are clipped to 1 ± this")
    dual_clip: float = Field(3.0, gt=1, description="bound on the ratio's loss for a negative advantage")

    @field_validator("reward")
    @classmethod
    def _known_reward(cls, reward: str) -> str:
        if reward not in REWARDS and not _EXTERNAL.fullmatch(reward):
            raise ValueError(
                f"{reason(repr(reward), 100)} is no reward{nearest(reward, REWARDS)}; "
                "expected 'cosine', 'binary' or 'hybrid', or a function as package.module:function"
            )
        return reward

    @model_validator(mode="after")
    def _consistent(self) -> ObjectiveSettings:
        if self.group == "position" and self.rollouts < 2 and self.nsp_weight > 0:
            raise ValueError(
                "group 'position' compares the rollouts of one position and needs rollouts of 2 or more, "
                f"not {self.rollouts}: raise rollouts, or use group 'sequence'"
            )
        if self.nsp_weight == self.ntp_weight == self.focus_weight == 0:
            raise ValueError("nsp_weight, ntp_weight and focus_weight are all 0: nothing would train the model")
        return self

    @property
    def uses_positions(self) -> bool:
        """Whether a step selects positions: to start rollouts there, or to weight the tokens after them."""
        return self.nsp_weight > 0 or self.focus_weight > 0
