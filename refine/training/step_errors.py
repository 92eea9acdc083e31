"""One-line messages for what goes wrong in a step: what happened, on which documents, and what to try."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from refine.objective.result import StepResult
from refine.settings.objective import ObjectiveSettings
from refine.training.losses import AnswerResult

ADVICE = "look at these documents, or lower learning_rate or max_gradient_norm; the last checkpoint is complete"
VALIDATION_ADVICE = (
    "lower sequences_per_pass (it changes no result, and the run resumes), use precision bfloat16, or lower "
    "documents.sequence_length"
)


def non_finite_loss(result: StepResult | AnswerResult, documents: Sequence[str]) -> str:
    """The loss of a pass on `documents` is not finite."""
    if isinstance(result, AnswerResult):
        parts = "answers"
    else:
        parts = f"next token {float(result.ntp_loss)}, next sequence {float(result.nsp_loss)}"
    return f"the loss is {float(result.loss.detach())} ({parts}) on {'; '.join(documents)}: {ADVICE}"


def non_finite_gradient(norm: float, documents: Sequence[str]) -> str:
    """The norm of the gradient of a step on `documents` is not finite."""
    return f"the gradient's norm is {norm} on {'; '.join(documents)}: {ADVICE}"


def out_of_memory(tokens: Tensor, sequences_per_pass: int) -> str:
    """A pass on `tokens` [B, T] ran out of memory."""
    rows, width = tokens.shape
    return (
        f"out of memory with {rows} sequences of {width} tokens in a pass: lower sequences_per_pass (now "
        f"{sequences_per_pass}) or turn on gradient_checkpointing (neither changes results, and the run "
        "resumes), use precision bfloat16, or lower documents.sequence_length"
    )


def no_room_for_rollouts(objective: ObjectiveSettings) -> str:
    """Every sequence of a step is too short for a rollout."""
    return (
        f"no sequence has the {objective.min_prefix + objective.rollout_length} tokens that min_prefix and "
        "rollout_length ask for: this step trains the next-token loss alone, as SFT"
    )
