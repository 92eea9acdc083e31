"""The scores in an evaluation.json are checked before they are recorded, and a task must be one of ours."""

from __future__ import annotations

import json

import pytest

from refine.errors import DataError
from refine.evaluation.record import Evaluation, recorded_metrics
from tests.hostile.run_readers import evaluation_record

GOOD = {"metrics": {"val/loss": 1.5}, "seconds": 2.0, "settings": {"scored_on": "x"}}


def test_metrics_seconds_and_what_was_scored_are_read(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(GOOD))
    assert recorded_metrics(tmp_path) == ({"val/loss": 1.5}, 2.0, "x")
    (tmp_path / "evaluation.json").write_text(json.dumps({"metrics": {}, "seconds": 1}))
    assert recorded_metrics(tmp_path) == ({}, 1, "")


@pytest.mark.parametrize(
    "change", [{"metrics": []}, {"metrics": {"a": "1"}}, {"metrics": {"a": True}}, {"seconds": None}, {"settings": 3}]
)
def test_a_record_of_another_form_is_named(tmp_path, change):
    (tmp_path / "evaluation.json").write_text(json.dumps(GOOD | change))
    with pytest.raises(DataError) as error:
        recorded_metrics(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "evaluation.json")) and "\n" not in str(error.value)


def test_a_task_that_is_none_of_ours_is_refused_with_the_nearest(tmp_path):
    values = evaluation_record()
    values["tasks"][0]["task"] = "niah_singel_1"
    (tmp_path / "evaluation.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"no task 'niah_singel_1' \(did you mean 'niah_single_1'\?\)"):
        Evaluation.load(tmp_path)
