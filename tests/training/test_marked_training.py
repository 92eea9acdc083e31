"""RefineTrainer at marks: micro-batches change nothing, what cannot train is refused, what is not used is mentioned."""

from __future__ import annotations

import datasets
import pytest
import torch

from refine.errors import DataError
from refine.evaluation import next_token
from refine.training.trainer import RefineTrainer
from tests.training.trained import logged, trained

MARKED = {"selection": "marked", "positions": 2, "rollouts": 2, "rollout_length": 3, "group": "position"}
FOCUS = {"selection": "marked", "positions": 2, "rollout_length": 3, "nsp_weight": 0, "focus_weight": 0.5}


@pytest.fixture
def marked_rows(rows):
    """The rows of `rows`; every other one has marks."""
    return [{**row, "marks": [7, 20, 31] if n % 2 else []} for n, row in enumerate(rows)]


@pytest.mark.parametrize("objective", [MARKED, FOCUS, {**MARKED, "focus_weight": 0.5}])
def test_micro_batches_change_no_loss_and_no_weight(tiny_model, arguments, marked_rows, objective):
    options = {"max_steps": 2, "optim": "sgd", "objective": objective}
    whole, cut = (
        trained(tiny_model(), arguments(**options, per_device_train_batch_size=size), marked_rows) for size in (4, 1)
    )
    names = ["loss", "ntp_loss", "marked_loss", *(["focus_loss"] if "focus_weight" in objective else [])]
    for name in names:
        assert logged(cut, f"train/{name}") == pytest.approx(logged(whole, f"train/{name}"), rel=1e-4), name
    for one, other in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_loss_of_a_focus_step_is_the_weighted_sum_and_no_rollout_is_sampled(tiny_model, arguments, marked_rows):
    trainer = trained(tiny_model(), arguments(max_steps=1, objective=FOCUS), marked_rows[1::2])
    (row,) = (row for row in trainer.state.log_history if "train/loss" in row)
    assert row["train/loss"] == pytest.approx(row["train/ntp_loss"] + 0.5 * row["train/focus_loss"], rel=1e-5)
    assert "train/nsp_loss" not in row and "train/rollouts" not in row


def test_marks_are_needed_where_the_objective_asks_for_them(tiny_model, arguments, rows):
    with pytest.raises(DataError, match="the training data has no marks: add a column `marks`"):
        RefineTrainer(tiny_model(), arguments(objective=MARKED), train_dataset=rows)
    falls_back = arguments(max_steps=1, objective={**MARKED, "fallback": "entropy"})
    assert logged(trained(tiny_model(), falls_back, rows), "train/rollouts")[0] > 0


def test_rows_without_marks_among_marked_ones_warn_of_nothing(tiny_model, arguments, marked_rows, caplog):
    rows = [marked_rows[0], marked_rows[1]]
    options = {"max_steps": 2, "sequences_per_step": 1, "per_device_train_batch_size": 1, "objective": MARKED}
    trained(tiny_model(), arguments(**options), rows)
    assert not caplog.records


def test_marks_that_an_arm_does_not_use_are_mentioned_once(tiny_model, arguments, marked_rows, caplog):
    trainer = trained(tiny_model(), arguments(max_steps=2, objective={"nsp_weight": 0}), marked_rows[1::2])
    said = [record.getMessage() for record in caplog.records if "has marks" in record.getMessage()]
    assert said == ["the data has marks; this arm uses them for marked_loss alone"]
    assert len(logged(trainer, "train/marked_loss")) == 2


def test_validation_sets_with_names_are_logged_under_them(tiny_model, arguments, marked_rows, rows):
    held_out = {"val": datasets.Dataset.from_list(rows[:2]), "recall": datasets.Dataset.from_list(marked_rows[:2])}
    args = arguments(max_steps=1, objective=MARKED, eval_strategy="steps", eval_steps=1)
    trainer = trained(tiny_model(), args, marked_rows, eval_dataset=held_out)
    assert (
        logged(trainer, "recall/marked_loss") and logged(trainer, "val/loss") and not logged(trainer, "val/marked_loss")
    )
    scored = next_token.evaluate(trainer.model, held_out["recall"])  # the champion's rule reads what `best_by` reads
    assert scored.marked_loss == pytest.approx(logged(trainer, "recall/marked_loss")[-1], rel=1e-5)
    assert scored.loss == pytest.approx(logged(trainer, "recall/loss")[-1], rel=1e-5)
