"""Settings of the training phases: start (next-token training from scratch), mid, post, test time."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, field_validator, model_validator

from refine.settings.base import Section
from refine.settings.objective import ObjectiveSettings

Precision = Literal["float32", "bfloat16"]
MidArm = Literal["none", "sft", "refine"]
PostArm = Literal["sft", "nested_sft", "nested_refine"]
TestTimeArm = Literal["none", "sft", "refine"]
ARMS: dict[str, tuple[str, ...]] = {  # of each phase that has arms
    "mid": get_args(MidArm),
    "post": get_args(PostArm),
    "test_time": get_args(TestTimeArm),
}


class OptimizerSettings(Section):
    """AdamW, gradient clipping and precision: shared by the training phases and test-time training."""

    learning_rate: float = Field(gt=0, description="learning rate of AdamW; with a schedule, its peak")
    adam_betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's decay of the first and second moment")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay")
    max_gradient_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    precision: Precision = Field("float32", description="float32, or bfloat16 autocast")


class PhaseSettings(OptimizerSettings):
    """Shared by all training phases: steps, batches, optimizer, checkpoints."""

    steps: int = Field(ge=0, description="optimizer steps")
    sequences_per_step: int = Field(ge=1, description="sequences per optimizer step, all processes together")
    sequences_per_pass: int = Field(
        ge=1, description="sequences per forward pass of one process; lowers memory, changes no result"
    )
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = Field(
        "constant", description="learning-rate schedule"
    )
    warmup_steps: int = Field(0, ge=0, description="optimizer steps of linear warm-up")
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, more time; changes no result"
    )
    checkpoint_every: int = Field(50, ge=1, description="optimizer steps between checkpoints")
    evaluate_every: int = Field(50, ge=1, description="optimizer steps between validations")
    early_stop_after: int | None = Field(
        None, ge=1, description="end after this many validations in a row without a lower loss; null never ends early"
    )
    keep: Literal["last", "best"] = Field(
        "last", description="the result is the last model, or the checkpoint with the lowest validation loss"
    )

    @model_validator(mode="after")
    def _consistent(self) -> PhaseSettings:
        if self.warmup_steps and self.schedule == "constant":
            raise ValueError(
                f"warmup_steps is {self.warmup_steps} but schedule is 'constant': use 'constant_with_warmup'"
            )
        if self.keep == "best" and self.checkpoint_every % self.evaluate_every:
            raise ValueError(
                f"keep 'best' needs a validation at every checkpoint: checkpoint_every {self.checkpoint_every} is no "
                f"multiple of evaluate_every {self.evaluate_every}"
            )
        return self


class StartSettings(PhaseSettings):
    """Next-token training of a new model, where model.checkpoint is null."""


class _Arms(Section):
    """A phase that is trained in several arms."""

    @field_validator("arms", check_fields=False)
    @classmethod
    def _once(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(arms)) != len(arms):
            raise ValueError(f"names an arm twice: {', '.join(arms)}")
        return arms


class MidSettings(_Arms, PhaseSettings):
    """Mid-training on long documents (METHOD: phases)."""

    arms: tuple[MidArm, ...] = Field(get_args(MidArm), min_length=1, description="which arms are trained and compared")
    length: int | None = Field(
        None, ge=2, description="sequences are cut into pieces of at most this [tokens]; null takes them as prepared"
    )
    packing: bool = Field(False, description="lay several short sequences into each row of `length` tokens")
    objective: ObjectiveSettings = Field(
        default_factory=lambda: ObjectiveSettings(), description="the REFINE step of arm `refine`"
    )

    @model_validator(mode="after")
    def _packs_into_a_length(self) -> MidSettings:
        if self.packing and self.length is None:
            raise ValueError("packing lays sequences into rows of `length` tokens: set length")
        return self


class PostSettings(_Arms, PhaseSettings):
    """Post-training on prompts with answers (METHOD: phases). `steps` counts steps on answers; the nested arms take
    `prompt_steps` steps on the prompts before each."""

    arms: tuple[PostArm, ...] = Field(
        get_args(PostArm), min_length=1, description="which arms are trained and compared"
    )
    prompt_steps: int = Field(
        4, ge=1, description="nested arms: steps on equal shares of a batch's prompts before the step on its answers"
    )
    length: int | None = Field(
        None, ge=2, description="longer prompts lose their middle: prompt and answer together [tokens]; null cuts none"
    )
    objective: ObjectiveSettings = Field(
        default_factory=lambda: ObjectiveSettings(reward="hybrid"),
        description="the step on prompts of arm `nested_refine`",
    )

    @model_validator(mode="after")
    def _shares(self) -> PostSettings:
        if self.prompt_steps > self.sequences_per_step:
            raise ValueError(
                f"prompt_steps {self.prompt_steps} share out sequences_per_step {self.sequences_per_step}: at most that"
            )
        return self


class TestTimeSettings(_Arms, OptimizerSettings):
    """Test-time training on each prompt before it is answered (METHOD: phases)."""

    __test__ = False  # not a test, whatever its name begins with

    arms: tuple[TestTimeArm, ...] = Field(get_args(TestTimeArm), min_length=1, description="which arms are compared")
    steps: int = Field(1, ge=1, description="optimizer steps on each prompt, by a new AdamW")
    carry_over: bool = Field(
        False, description="never restore the weights, so that a score depends on the samples' order (as published)"
    )
    objective: ObjectiveSettings = Field(
        default_factory=lambda: ObjectiveSettings(reward="binary", nsp_weight=0.4),
        description="the REFINE step of arm `refine`",
    )


class CommonTraining(Section):
    """How a new model is trained, and on how many processes."""

    processes: int = Field(
        1,
        ge=1,
        description="training processes on this machine, a GPU each; shares sequences_per_step out, changes no draw",
    )
    sharding: Literal["none", "full"] = Field(
        "none",
        description="none: each process holds the model (DDP); full: they share out weights and optimizer (FSDP)",
    )
    start: StartSettings


class TrainingSettings(CommonTraining):
    """One section for each phase."""

    mid: MidSettings
    post: PostSettings | None = Field(None, description="post-training; null where the experiment has none")
    test_time: TestTimeSettings | None = Field(None, description="test-time training; null where there is none")
