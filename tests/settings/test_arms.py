"""What an arm trains follows from its name and from `variants`; wrong ones are refused when settings are read."""

from __future__ import annotations

from typing import Any

import pytest

from refine.errors import SettingError
from refine.settings.base import validated
from refine.settings.training import MidSettings, PostSettings

STEPS = {"steps": 1, "sequences_per_step": 8, "sequences_per_pass": 1, "learning_rate": 1e-4}
MARKED = {"selection": "marked", "rollouts": 4, "group": "position"}


def mid(**more: Any) -> MidSettings:
    return validated(MidSettings, STEPS | more)


def test_an_arm_of_the_phase_has_the_objective_with_what_its_name_implies():
    section = mid(objective={"nsp_weight": 0.3, "focus_weight": 0.1})
    assert section.objective_of("refine") == section.objective
    for arm, weights in {"sft": (0, 0), "none": (0, 0), "focus": (0, 0.1)}.items():
        found = section.objective_of(arm)
        assert (found.nsp_weight, found.focus_weight) == weights
        assert found.model_copy(update={"nsp_weight": 0.3, "focus_weight": 0.1}) == section.objective


def test_a_variant_changes_the_objective_and_keeps_what_its_name_implies():
    section = mid(
        arms=["sft", "refine_marked", "focus"],
        variants={"refine_marked": MARKED, "focus": {"selection": "marked", "focus_weight": 0.2, "nsp_weight": 3}},
    )
    assert section.objective_of("refine_marked") == section.objective.model_copy(update=MARKED)
    focus = section.objective_of("focus")
    assert (focus.selection, focus.focus_weight, focus.nsp_weight) == ("marked", 0.2, 0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arms": ["sft", "refin"]}, r"phase mid has no arm 'refin' \(did you mean 'refine'\?\); it has none, sft,"),
        ({"arms": ["focus"]}, "arm focus has no focus_weight"),
        ({"variants": {"mine": {"rollout": 3}}}, r"arm mine: unknown setting 'rollout' \(did you mean 'rollouts'\?\)"),
        ({"variants": {"mine": {"group": "position"}}}, "arm mine: .*needs rollouts of 2 or more"),
        ({"variants": {"../x": {}}}, "should match pattern"),
        ({"variants": {"mine": 3}}, "should be a valid dict"),
        ({"continue_with": "mine"}, "phase mid has no arm 'mine'"),
        ({"objective": {"nsp_weight": 0, "ntp_weight": 0}}, "focus_weight are all 0"),
        ({"objective": {"focus_weight": -1}}, "focus_weight"),
    ],
)
def test_a_wrong_arm_or_variant_is_one_line(settings, message):
    with pytest.raises(SettingError, match=message) as caught:
        mid(**settings)
    assert "\n" not in str(caught.value)


def test_post_training_has_its_own_arms():
    post = validated(PostSettings, STEPS | {"arms": ["sft", "nested_focus"], "objective": {"focus_weight": 0.2}})
    assert post.objective_of("nested_focus").nsp_weight == 0
    with pytest.raises(SettingError, match=r"phase post has no arm 'refine' .*nested_refine"):
        post.check_arm("refine")
