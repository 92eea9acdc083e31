"""The rule decides which version becomes champion, and gives its reasons."""

from __future__ import annotations

import pytest

from refine.errors import ServiceError
from refine.settings.evaluation import RegistrySettings
from refine.tracking.champion import judge, promote
from refine.tracking.registry import Version, register, versions

KNOWN = {"identity.commit": "c0ffee", "identity.dirty": "false", "identity.data": "abc.dir", "refine.evaluation": "e1"}


def rule(**changes) -> RegistrySettings:
    return RegistrySettings(**{"minimum_gain": 0.01, "guards": {"second_domain/loss": 0.05}, **changes})


def version(number: int, loss: float, second: float = 4.0, tags: dict | None = None) -> Version:
    metrics = {"val/loss": loss, "second_domain/loss": second, "eval/n/score": 1 - loss / 10}
    return Version("m", number, {**KNOWN, **(tags or {})}, metrics=metrics)


def test_a_clear_gain_is_accepted_and_a_small_one_is_not():
    champion = version(1, 3.5)
    assert judge(rule(), version(2, 3.48), champion).accepted
    refused = judge(rule(), version(2, 3.495), champion)
    assert not refused.accepted and "a gain of 0.0050, and at least 0.0100 is required" in refused.reasons[0]
    assert not judge(rule(minimum_gain=0.0), version(2, 3.5), champion).accepted, "an equal is no gain"


def test_a_loss_on_a_guarded_metric_is_refused():
    found = judge(rule(), version(2, 3.0, second=4.06), version(1, 3.5))
    assert not found.accepted and found.reasons == (
        "second_domain/loss is worse by 0.0600, and at most 0.0500 is allowed",
    )
    assert judge(rule(), version(2, 3.0, second=4.04), version(1, 3.5)).accepted


def test_guards_and_goals_follow_the_metrics_direction():
    better = version(2, 3.0)
    assert judge(rule(metric="eval/n/score", goal="maximise"), better, version(1, 3.5)).accepted
    found = judge(rule(guards={"eval/n/score": 0.01}), version(2, 3.0), version(1, 3.5))
    assert found.accepted, "a higher score is no loss"


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        ({"identity.commit": "unknown"}, "no git commit"),
        ({"identity.dirty": "true"}, "uncommitted changes"),
        ({"identity.data": "unknown"}, "its data is unknown"),
    ],
)
def test_versions_of_unknown_code_or_data_are_refused(tags, why):
    found = judge(rule(), version(2, 3.0, tags=tags), None)
    assert not found.accepted and why in found.reasons[0]


def test_the_first_champion_needs_no_rival_and_later_ones_need_the_same_inputs():
    assert judge(rule(), version(2, 3.0), None).accepted
    found = judge(rule(), version(2, 3.0), version(1, 3.5, tags={"refine.evaluation": "e2"}))
    assert not found.accepted and "other documents and prompts" in found.reasons[0]


def test_a_missing_metric_is_named_with_the_nearest():
    with pytest.raises(ServiceError, match=r"has no metric 'val/los' \(did you mean 'val/loss'"):
        judge(rule(metric="val/los"), version(2, 3.0), None)
    for champion in (None, version(1, 3.5), version(2, 3.0)):
        with pytest.raises(ServiceError, match=r"'second_domain/los' \(did you mean 'second_domain/loss'"):
            judge(rule(guards={"second_domain/los": 0.1}), version(2, 3.0), champion)


def test_losses_of_answers_are_losses():
    low, high = (
        Version("m", number, KNOWN, metrics={"val/loss": 3.0 - number / 10, "val/answer_loss": loss})
        for number, loss in ((1, 3.0), (2, 4.0))
    )
    found = judge(rule(guards={"val/answer_loss": 0.5}), high, low)
    assert found.reasons == ("val/answer_loss is worse by 1.0000, and at most 0.5000 is allowed",)


def test_the_alias_moves_and_the_version_records_why(client, experiment, model_folder):
    for number, loss in ((1, 3.5), (2, 3.4), (3, 3.6)):
        run = client.create_run(experiment).info
        register(
            client,
            "refine-sample",
            model_folder,
            key=str(number),
            run_id=run.run_id,
            experiment_id=experiment,
            metrics={"val/loss": loss, "second_domain/loss": 4.0},
            settings={},
            tags=KNOWN,
        )
    assert promote(client, rule(), "1").accepted
    assert promote(client, rule(), "2", dry_run=True).accepted
    assert [one.is_champion for one in versions(client, "refine-sample")] == [True, False, False]
    assert promote(client, rule(), "2").accepted and not promote(client, rule(), "3").accepted
    found = versions(client, "refine-sample")
    assert [one.is_champion for one in found] == [False, True, False]
    assert "better by 0.1000" in found[1].tags["champion.why"]
    assert "a gain of -0.2000" in found[2].tags["champion.refused"]
    with pytest.raises(ServiceError, match="no version or alias '9'"):
        promote(client, rule(), "9")
