"""Settings of the training phases: start (next-token training from scratch), mid, post, test time."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from refine.settings.base import Section
from refine.settings.objective import ObjectiveSettings

Precision = Literal["float32", "bfloat16"]


class PhaseSettings(Section):
    """What every training phase has: steps, batches, optimizer, checkpoints."""

    steps: int = Field(ge=0, description="optimizer steps")
    sequences_per_step: int = Field(ge=1, description="sequences per optimizer step, all processes together")
    sequences_per_pass: int = Field(ge=1, description="sequences per forward pass of one process; lowers memory, changes no result")
    learning_rate: float = Field(gt=0, description="peak learning rate of AdamW")
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = Field("constant", description="learning-rate schedule")
    warmup_steps: int = Field(0, ge=0, description="optimizer steps of linear warm-up")
    adam_betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's decay of the first and second moment")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay")
    max_gradient_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    precision: Precision = Field("float32", description="float32, or bfloat16 autocast")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass: less memory, more time")
    checkpoint_every: int = Field(50, ge=1, description="optimizer steps between checkpoints")
    evaluate_every: int = Field(50, ge=1, description="optimizer steps between validations")

    @model_validator(mode="after")
    def _warm_up_ends(self) -> PhaseSettings:
        if self.warmup_steps and self.schedule == "constant":
            raise ValueError(f"warmup_steps is {self.warmup_steps} but schedule is 'constant': use 'constant_with_warmup'")
        return self


class StartSettings(PhaseSettings):
    """Next-token training of a new model, where model.checkpoint is null."""


class MidSettings(PhaseSettings):
    """Mid-training on long documents (METHOD: phases)."""

    arms: tuple[Literal["none", "sft", "refine"], ...] = Field(("none", "sft", "refine"), min_length=1, description="which arms are trained and compared")
    objective: ObjectiveSettings = Field(default_factory=ObjectiveSettings, description="the REFINE step of arm `refine`")

    @model_validator(mode="after")
    def _arms_once(self) -> MidSettings:
        if len(set(self.arms)) != len(self.arms):
            raise ValueError(f"arms names an arm twice: {', '.join(self.arms)}")
        return self


class TrainingSettings(Section):
    """One section for each phase."""

    start: StartSettings
    mid: MidSettings
