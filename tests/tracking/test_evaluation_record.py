"""A version is compared by its own evaluation; an extra one stays apart, in a run of its own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from refine.tracking.evaluation_record import is_own, record_evaluation, replace_scores
from refine.tracking.registry import Version, register, version_of


@pytest.fixture
def version(client, experiment, model_folder):
    run = client.create_run(experiment).info.run_id
    tags = {"experiment": "sample", "arm": "sft", "phase": "mid"}
    return register(client, "m", model_folder, key="k", run_id=run, experiment_id=experiment,
                    metrics={"val/entropy": 2.0, "val/loss": float("nan")}, settings={}, tags=tags)  # fmt: skip


def found() -> SimpleNamespace:
    """What record_evaluation needs of an evaluation."""
    return SimpleNamespace(metrics=lambda: {"val/loss": 3.0}, settings={"scored_on": "these"})


@pytest.mark.parametrize(
    ("has", "complete", "own"), [("", True, True), ("", False, False), ("these", True, True), ("others", True, False)]
)
def test_own_are_complete_scores_of_a_version_without_others(has, complete, own):
    assert is_own(Version("m", 1, {"refine.evaluation": has}), "these", complete) is own


def test_own_scores_join_what_training_measured_and_the_page(client, version, experiment, tmp_path):
    (tmp_path / "table.md").write_text("a table")
    made = record_evaluation(client, version, found(), [tmp_path / "table.md"], own=True)
    assert made.metrics == {"val/entropy": 2.0, "val/loss": 3.0} and made.evaluation == "these"
    assert made.tags["val/loss"] == "3.0000"
    assert "val/loss 3.0000" in client.get_model_version("m", "1").description
    run = client.get_run(made.tags["refine.evaluation_run"])
    assert run.info.experiment_id == experiment and run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["table.md"]
    assert run.data.tags["refine.trained_by"] == version.run_id, "reports read it"


def test_extra_scores_and_scores_on_other_inputs_are_in_no_report(client, version):
    made = record_evaluation(client, version, found(), [], own=False)
    assert (
        made.extra == {"val/loss": 3.0}
        and made.evaluation == ""
        and "val/loss" not in {name for name, value in made.metrics.items() if value == value}
    )
    first = client.create_run(client.get_experiment_by_name("sample").experiment_id).info.run_id
    replace_scores(client, made, {"val/loss": 2.0}, "these", first)
    second = client.create_run(client.get_experiment_by_name("sample").experiment_id).info.run_id
    replace_scores(client, version_of(client, "m", "1"), {"val/loss": 1.0}, "others", second)
    assert "refine.trained_by" in client.get_run(first).data.tags
    assert "refine.trained_by" not in client.get_run(second).data.tags
