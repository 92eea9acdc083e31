"""Errors of a step are one line that says what to try. Raised in a run: tests/training/test_trainer.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from refine.settings.objective import ObjectiveSettings
from refine.training import step_errors
from refine.training.losses import AnswerResult

NAN = torch.tensor(float("nan"))
STEP = SimpleNamespace(loss=NAN, ntp_loss=torch.tensor(2.5), nsp_loss=NAN)
LONG = ObjectiveSettings(min_prefix=10, rollout_length=5)


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        (
            step_errors.non_finite_loss(STEP, ["hamlet", "lear"]),
            "is nan|next token 2.5|hamlet; lear|learning_rate",
        ),
        (step_errors.non_finite_loss(AnswerResult(NAN, NAN, 3), ["row 1"]), "(answers) on row 1|learning_rate"),
        (step_errors.non_finite_gradient(float("inf"), ["lear"]), "norm is inf on lear|max_gradient_norm"),
        (step_errors.out_of_memory(torch.zeros(4, 512), 4), "4 sequences of 512 tokens|sequences_per_pass (now 4)"),
        (step_errors.no_positions(LONG), "the 15 tokens|SFT"),
    ],
)
def test_every_message_is_one_line_with_what_was_seen_and_what_to_try(message, parts):
    assert all(part in message for part in parts.split("|")) and "\n" not in message
