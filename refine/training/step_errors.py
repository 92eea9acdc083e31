"""One-line messages for what goes wrong in a step: what happened, on which documents, and what to try."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import Tensor

from refine.errors import DataError
from refine.objective.result import StepResult
from refine.settings.objective import ObjectiveSettings
from refine.training.losses import AnswerResult

log = logging.getLogger(__name__)
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


def no_positions(objective: ObjectiveSettings) -> str:
    """No sequence of a step has a position: it is too short, has no mark, or repeats nothing."""
    k = objective.rollout_length
    if objective.selection == "marked":
        why = f"no sequence has a mark with {k} tokens after it (rollout_length)"
    elif objective.selection == "recall":
        why = f"no sequence repeats {k} tokens (rollout_length)"
    else:
        why = f"no sequence has the {objective.min_prefix + k} tokens that min_prefix and rollout_length ask for"
    return f"{why}: this step trains the next-token loss alone, as SFT"


def check_marks(marked: bool, objective: ObjectiveSettings) -> None:
    """Raises DataError: `objective` trains at marks alone, and the data has none (`marked` False). Marks that it does
    not use are mentioned in the log."""
    at_marks = objective.uses_positions and objective.selection == "marked"
    if at_marks and not marked and objective.fallback == "none":
        raise DataError(
            "objective.selection is 'marked', but the training data has no marks: add a column `marks` (docs/data.md), "
            "use recall exercises, or set objective.fallback to entropy"
        )
    if marked and not at_marks:
        who = f"selection {objective.selection!r}" if objective.uses_positions else "this arm"
        log.warning("the data has marks; %s uses them for marked_loss alone", who)
