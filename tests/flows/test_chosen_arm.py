"""The arm that goes on to the next phase: a named one, or the best by a metric of its training."""

from __future__ import annotations

import pytest

from flows.pipeline import chosen
from refine.errors import SettingError
from refine.phases.stages import Stage, Trained
from refine.settings.base import validated
from refine.settings.training import MidSettings

STEPS = {"steps": 1, "sequences_per_step": 1, "sequences_per_pass": 1, "learning_rate": 1e-4}
LOSSES = {"none": 0.9, "sft": 0.4, "refine": 0.6}


def models(metric: str = "recall/marked_loss") -> list[Trained]:
    return [Trained(Stage("mid", arm, "", ""), arm, "", metrics={metric: loss}) for arm, loss in LOSSES.items()]


def phase(**settings: object) -> MidSettings:
    return validated(MidSettings, STEPS | settings)


def test_a_named_arm_goes_on_and_without_it_the_last():
    assert chosen(models(), phase()).model == "refine"
    assert chosen(models(), phase(continue_with="sft")).model == "sft"
    assert chosen(models()[:2], phase()).model == "sft"


def test_the_best_arm_goes_on():
    assert chosen(models(), phase(continue_with="best", best_by="recall/marked_loss")).model == "sft"
    assert chosen(models("val/accuracy"), phase(continue_with="best", best_by="val/accuracy")).model == "none"


def test_a_metric_that_no_training_has_is_named_with_the_nearest():
    with pytest.raises(SettingError, match=r"training.mid.best_by: mid none has no metric 'recall/loss'"):
        chosen(models("recall/marked_loss"), phase(continue_with="best", best_by="recall/loss"))
