"""Validation draws the same each time, counts every row once, and leaves the model as it was. With a whole run:
tests/training/test_trainer.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from refine.settings.objective import ObjectiveSettings
from refine.training.dataset import token_rows
from refine.training.losses import pass_loss
from refine.training.validation import validate

OBJECTIVE = ObjectiveSettings(positions=3, rollout_length=3, min_prefix=4, reward="binary")


@pytest.fixture
def validated(tiny_model, rows):
    """Validates the tiny model on ten rows; returns the metrics, and the rows of each pass."""

    def run(objective=OBJECTIVE, model=None, **more):
        model, passes = model or tiny_model(), []
        values = {"seed": 1, "device": "cpu", "process_index": 0, "world_size": 1, "validation_rollouts": True}
        args = SimpleNamespace(per_device_eval_batch_size=4, **{**values, **more})

        def run_pass(batch, objective, seeds, counts):
            passes.append(batch["sequences"])
            return pass_loss(model, batch, objective, torch.tensor(seeds), counts)

        return validate(run_pass, model, token_rows(rows), "val", objective, args), passes

    return run


def test_draws_depend_only_on_the_seed(validated):
    assert validated()[0] == validated()[0]
    assert validated()[0]["reward/cosine/mean"] != validated(seed=2)[0]["reward/cosine/mean"]


def test_every_arm_samples_the_same_rollouts(validated):
    sft = OBJECTIVE.model_copy(update={"nsp_weight": 0.0})
    assert validated(sft)[0] == validated()[0]
    found = validated(validation_rollouts=False)[0]
    assert {"loss", "accuracy", "entropy"} == set(found), "and none if the run wants none"


def test_metrics_of_training_alone_are_left_out(validated):
    found = validated()[0]
    assert not {"nsp_loss", "clip_fraction", "ratio/mean", "advantage/std", "log_prob_gap", "ntp_loss"} & set(found)
    assert {"reward/binary/q50", "reward/cosine/mean", "reward/binary/histogram"} <= set(found)
    assert "reward/cosine/q50" not in found


def test_a_process_without_a_batch_runs_the_last_one_and_does_not_count_it(validated):
    """Three batches, two processes: the second process's own batch is the second; in the third pass it has none."""
    first, passes = validated(process_index=0, world_size=2)
    assert passes == [[0, 1, 2, 3], [8, 9]]
    second, passes = validated(process_index=1, world_size=2)
    assert passes == [[4, 5, 6, 7], [8, 9]]
    assert first["rollouts"] + second["rollouts"] == validated()[0]["rollouts"]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_s_mode_is_restored(validated, tiny_model, training):
    model = tiny_model().train(training)
    validated(model=model)
    assert model.training is training
