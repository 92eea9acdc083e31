"""What goes wrong in a step, in one line each: what was seen, on which documents, and what to try."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from refine.settings.objective import ObjectiveSettings
from refine.training.losses import AnswerResult

ADVICE = "look at these documents, or lower learning_rate or max_gradient_norm; the last checkpoint is whole"


def non_finite(result: Any, documents: Sequence[str]) -> str:
    """Of a pass on `documents` whose loss is not finite."""
    parts = (
        "answers"
        if isinstance(result, AnswerResult)
        else f"next token {float(result.ntp_loss)}, next sequence {float(result.nsp_loss)}"
    )
    return f"the loss is {float(result.loss.detach())} ({parts}) on {'; '.join(documents)}: {ADVICE}"


def out_of_memory(tokens: Tensor, sequences_per_pass: int) -> str:
    """Of a pass on `tokens` [B, T]."""
    rows, width = tokens.shape
    return (
        f"out of memory with {rows} sequences of {width} tokens in a pass: lower sequences_per_pass (now "
        f"{sequences_per_pass}) or turn on gradient_checkpointing (results stay the same, and the run goes on where it "
        "was), use precision bfloat16, or lower documents.sequence_length"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a device, or the machine, has no memory left."""
    text = str(error)
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "can't allocate memory" in text
        or "not enough memory" in text
    )


def too_short(objective: ObjectiveSettings) -> str:
    """Of a step none of whose sequences has room for a rollout."""
    return (
        f"no sequence has the {objective.min_prefix + objective.rollout_length} tokens that min_prefix and "
        "rollout_length ask for: trained by next-token loss alone, as SFT"
    )
