"""Settings of the training phases: start (next-token training from scratch), mid, post, test time."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from refine.settings.arms import Arms
from refine.settings.base import MOST_ROWS, MOST_STEPS, MOST_TOKENS, Section
from refine.settings.objective import ObjectiveSettings

BEST = "best"  # of the arms of a phase
Precision = Literal["float32", "bfloat16"]
Freeze = Literal["none", "attention"]
Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSettings(Section):
    """AdamW, gradient clipping and precision: shared by the training phases and test-time training."""

    learning_rate: float = Field(gt=0, description="learning rate of AdamW; with a schedule, its peak")
    adam_betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="AdamW's decay of the first and second moment")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay")
    max_gradient_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    precision: Precision = Field("float32", description="float32, or bfloat16 autocast")
    freeze: Freeze = Field(
        "none",
        description="attention: the attention mixers of a hybrid stay as they are, so that its fast weights must learn",
    )


class PhaseSettings(OptimizerSettings):
    """Shared by all training phases: steps, batches, optimizer, checkpoints."""

    steps: int = Field(ge=0, le=MOST_STEPS, description="optimizer steps")
    sequences_per_step: int = Field(
        ge=1, le=MOST_ROWS, description="sequences per optimizer step, all processes together"
    )
    sequences_per_pass: int = Field(
        ge=1,
        le=MOST_ROWS,
        description="sequences per forward pass of one process; fewer need less memory and change no result",
    )
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = Field(
        "constant", description="learning-rate schedule"
    )
    warmup_steps: int = Field(0, ge=0, le=MOST_STEPS, description="optimizer steps of linear warm-up")
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, more time, the same result"
    )
    checkpoint_every: int = Field(50, ge=1, le=MOST_STEPS, description="optimizer steps between checkpoints")
    evaluate_every: int = Field(50, ge=1, le=MOST_STEPS, description="optimizer steps between validations")
    early_stop_after: int | None = Field(
        None,
        ge=1,
        le=MOST_STEPS,
        description="stop after this many validations in a row without a lower loss; null never stops early",
    )
    keep: Literal["last", "best"] = Field(
        "last", description="result: the last model, or the checkpoint with the lowest validation loss"
    )

    @model_validator(mode="after")
    def _consistent(self) -> PhaseSettings:
        if self.warmup_steps and self.schedule == "constant":
            raise ValueError(
                f"warmup_steps is {self.warmup_steps} but schedule is 'constant': use 'constant_with_warmup'"
            )
        if self.keep == "best" and self.checkpoint_every % self.evaluate_every:
            raise ValueError(
                f"keep 'best' needs a validation at every checkpoint: checkpoint_every {self.checkpoint_every} is not "
                f"a multiple of evaluate_every {self.evaluate_every}"
            )
        return self


class StartSettings(PhaseSettings):
    """Next-token training of a new model, where model.checkpoint is null."""


class _Continued(Arms):
    """A phase whose arms are candidates for the model that the next phase starts from."""

    continue_with: str
    best_by: str = Field("val/loss", description="the metric of continue_with `best`, at the end of the training")

    @model_validator(mode="after")
    def _continues_with_an_arm(self) -> _Continued:
        if self.continue_with != BEST:
            self.check_arm(self.continue_with)
        return self


class MidSettings(_Continued, PhaseSettings):
    """Mid-training on long documents (docs/method.md: Phases)."""

    arms: tuple[str, ...] = Field(
        ("none", "sft", "refine"), min_length=1, description="which arms are trained and compared"
    )
    length: int | None = Field(
        None,
        ge=2,
        le=MOST_TOKENS,
        description="cut sequences into pieces of at most this length [tokens]; null does not cut",
    )
    packing: bool = Field(False, description="pack several short sequences into each row of `length` tokens")
    objective: ObjectiveSettings = Field(
        default_factory=lambda: ObjectiveSettings(), description="the REFINE step of arm `refine`"
    )
    continue_with: str = Field("refine", description="the arm that the next phase starts from, or `best` by best_by")

    @classmethod
    def phase(cls) -> str:
        """See Arms."""
        return "mid"

    @model_validator(mode="after")
    def _packs_into_a_length(self) -> MidSettings:
        if self.packing and self.length is None:
            raise ValueError("packing fills rows of `length` tokens: set length")
        return self


class PostSettings(_Continued, PhaseSettings):
    """Post-training on prompts with answers (docs/method.md: Phases). `steps` counts steps on answers. The nested arms
    take `prompt_steps` steps on the prompts before each."""

    arms: tuple[str, ...] = Field(
        ("sft", "nested_sft", "nested_refine"), min_length=1, description="which arms are trained and compared"
    )
    prompt_steps: int = Field(
        4,
        ge=1,
        le=MOST_ROWS,
        description="nested arms: steps on a batch's prompts before the step on its answers, each on an equal share",
    )
    length: int | None = Field(
        None,
        ge=2,
        le=MOST_TOKENS,
        description="prompt and answer together [tokens]; a longer prompt loses its middle; null does not cut",
    )
    objective: ObjectiveSettings = Field(
        default_factory=lambda: ObjectiveSettings(reward="hybrid"),
        description="the step on prompts of arm `nested_refine`",
    )

    continue_with: str = Field(
        "nested_refine", description="the arm that test-time training starts from, or `best` by best_by"
    )
    best_by: str = Field("val/answer_loss", description="the metric of continue_with `best`")

    @classmethod
    def phase(cls) -> str:
        """See Arms."""
        return "post"

    @model_validator(mode="after")
    def _shares(self) -> PostSettings:
        if self.prompt_steps > self.sequences_per_step:
            raise ValueError(f"prompt_steps {self.prompt_steps} exceeds sequences_per_step {self.sequences_per_step}")
        return self


class TestTimeSettings(Arms, OptimizerSettings):
    """Test-time training on each prompt before the model answers it (docs/method.md: Phases)."""

    __test__ = False  # pytest takes the name for a test's

    arms: tuple[str, ...] = Field(("none", "sft", "refine"), min_length=1, description="which arms are compared")
    steps: int = Field(1, ge=1, le=MOST_STEPS, description="optimizer steps on each prompt, by a new AdamW")
    carry_over: bool = Field(
        False, description="never restore the weights, as published; scores then depend on the order of the prompts"
    )
    objective: ObjectiveSettings = Field(
        default_factory=lambda: ObjectiveSettings(reward="binary", nsp_weight=0.4),
        description="the REFINE step of arm `refine`",
    )

    @classmethod
    def phase(cls) -> str:
        """See Arms."""
        return "test_time"


class CommonTraining(Section):
    """Training of a new model, and the processes that train."""

    processes: int = Field(
        1,
        ge=1,
        le=2**16,
        description="training processes on this machine, one GPU each; they divide sequences_per_step, change no draw",
    )
    sharding: Literal["none", "full"] = Field(
        "none",
        description="none: each process holds the model (DDP); full: processes divide weights and optimizer (FSDP)",
    )
    start: StartSettings


class TrainingSettings(CommonTraining):
    """The training of an experiment, a section per phase."""

    mid: MidSettings
    post: PostSettings | None = Field(None, description="post-training; null: none")
    test_time: TestTimeSettings | None = Field(None, description="test-time training; null: none")
