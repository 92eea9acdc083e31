"""One name has one meaning."""

from __future__ import annotations

from refine.metric_names import count_of, told_apart, validation_name


def test_what_is_measured_on_prompts_has_a_name_of_its_own():
    names = [
        validation_name("val", one, prompts) for prompts in (False, True) for one in ("loss", "reward/cosine/mean")
    ]
    assert names == ["val/loss", "val/reward/cosine/mean", "val/prompts/loss", "val/prompts/reward/cosine/mean"]
    assert validation_name("val", "answer_loss", True) == "val/answer_loss"


def test_what_an_earlier_release_recorded_of_prompts_is_renamed_and_documents_are_not():
    old = {
        "val/loss": 1.0,
        "val/reward/cosine/mean": 2.0,
        "val/rollouts": 3.0,
        "val/entropy": 4.0,
        "val/answer_loss": 5.0,
    }
    assert told_apart(old) == {
        "val/loss": 1.0, "val/prompts/reward/cosine/mean": 2.0, "val/prompts/rollouts": 3.0, "val/prompts/entropy": 4.0,
        "val/answer_loss": 5.0,
    }  # fmt: skip
    assert told_apart(told_apart(old)) == told_apart(old)


def test_counts_stand_beside_what_they_count():
    metrics = {"val/prompts/rollouts": 40.0, "val/rollouts": 9.0, "eval/n/64/samples": 20.0, "val/sequences": 32.0}
    names = ["val/prompts/reward/cosine/mean", "val/reward/cosine/mean", "eval/n/64/score", "val/loss", "val/entropy"]
    assert [count_of(metrics, name) for name in names] == [40, 9, 20, 32, 0]
