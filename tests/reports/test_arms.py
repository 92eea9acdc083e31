"""Arms side by side: the baseline of each, paired differences, what is missing, and the order of phases."""

from __future__ import annotations

from dataclasses import replace

import pytest

from refine.evaluation.intervals import Estimate
from refine.phases.stages import Scored, Stage, Target, Trained
from refine.reports import arms
from refine.reports.arms import Arm, all_columns, metric_column, of_evaluations, of_test_time, of_versions, table
from refine.reports.comparison import compare
from refine.tracking.registry import Version

NEEDLE = "eval/niah_single_1/4096/score"


def row(made, phase: str, arm: str):
    return next(one for one in made.rows if (one.phase, one.arm) == (phase, arm))


def test_each_arm_is_paired_with_the_baseline_of_its_phase(experiment_arms):
    made = table(experiment_arms, [metric_column(["val/loss"]), metric_column(["eval/factsqa/512/score"])])
    focus = row(made, "mid", "focus").cells[0]
    assert focus.difference.value == pytest.approx(-0.05, abs=0.002) and focus.difference.clear_of_zero
    assert focus.estimate.low < 3.4 < 3.5 < focus.estimate.high, "documents differ far more than arms"
    assert row(made, "mid", "none").cells[0].difference.clear_of_zero
    assert not row(made, "mid", "refine").cells[0].difference.clear_of_zero
    assert row(made, "mid", "sft").cells[0].difference is None and row(made, "mid", "sft").is_baseline
    adapted = row(made, "test_time", "refine").cells
    assert adapted[0].estimate is None and adapted[1].difference.value == pytest.approx(0.2)
    assert row(made, "test_time", "none").is_baseline


def test_a_difference_over_fewer_than_ten_samples_is_never_clear(make_evaluated):
    def of(documents: int):
        pair = [make_evaluated("mid", "sft", 0.0, 0, 0, documents=documents)]
        pair.append(make_evaluated("mid", "focus", 0.5, 0, 0, documents=documents))
        return row(table(of_evaluations(pair), [metric_column(["val/loss"])]), "mid", "focus").cells[0].difference

    assert of(9).high < -0.4 and not of(9).clear_of_zero
    assert of(10).high < -0.4 and of(10).clear_of_zero


def test_a_mean_over_tasks_weighs_each_task_alike_and_has_no_interval_without_samples(experiment_arms):
    names = ["eval/niah_single_1/1024/score", "eval/factsqa/512/score"]
    made = table(experiment_arms[:4], [metric_column(names)])
    cell = row(made, "mid", "focus").cells[0]
    assert cell.estimate.value == pytest.approx((0.9 + 0.4) / 2) and cell.estimate.low < 0.65 < cell.estimate.high
    bare = [replace(one, evaluated=()) for one in experiment_arms[:4]]
    cell = row(table(bare, [metric_column(names)]), "mid", "focus").cells[0]
    assert (cell.estimate, cell.difference) == (Estimate(pytest.approx(0.65), 0, None, None), None)


def test_the_baseline_is_of_the_same_samples_and_first_of_the_same_experiment(experiment_arms):
    sft, focus = experiment_arms[1], experiment_arms[3]
    columns = [metric_column([NEEDLE])]
    others = [replace(sft, scored_on="y"), focus]
    assert row(table(others, columns), "mid", "focus").cells[0].difference is None
    good = replace(sft, experiment="other", estimates={}, evaluated=focus.evaluated)
    assert row(table([good, focus], columns), "mid", "focus").cells[0].difference.value == 0.0
    assert row(table([sft, good, focus], columns), "mid", "focus").cells[0].difference.value == pytest.approx(0.4)


def test_phases_come_in_their_order_and_columns_that_nobody_has_are_left_out(experiment_arms):
    made = table(experiment_arms[::-1], [metric_column(["nothing/loss"]), *all_columns(experiment_arms)])
    assert list(dict.fromkeys(one.phase for one in made.rows)) == ["mid", "post", "test_time"]
    assert made.columns[0].name != "nothing/loss" and NEEDLE in [one.name for one in made.columns]


def test_seeds_are_averaged_and_paired_seed_by_seed(make_evaluated):
    given = [make_evaluated("mid", arm, gain, 0.5, 0.5, seed) for seed in (1, 2) for arm, gain in
             (("sft", 0.0), ("refine", 0.1 * seed))]  # fmt: skip
    made = table(of_evaluations(given), [metric_column(["val/loss"])])
    cell = row(made, "mid", "refine").cells[0]
    assert cell.difference.value == pytest.approx(-0.15, abs=0.002) and row(made, "mid", "refine").seeds == (1, 2)
    assert cell.estimate.value == pytest.approx(3.35, abs=0.002)


def test_versions_take_their_samples_from_mlflow_and_stay_without(client, experiment, tmp_path, make_evaluated):
    versions = []
    for n, (arm, gain) in enumerate((("sft", 0.0), ("refine", 0.1), ("focus", 0.2))):
        evaluation = make_evaluated("mid", arm, gain, 0.5, 0.5).evaluation
        run_id = client.create_run(experiment).info.run_id
        if arm != "focus":  # its evaluation is gone
            client.log_artifact(run_id, str(evaluation.save(tmp_path / arm)))
        tags = {"phase": "mid", "arm": arm, "refine.evaluation_run": run_id, "identity.seed": "1"}
        aliases = ("champion",) if arm == "focus" else ()
        versions.append(Version("m", n + 7, tags, aliases, evaluation.metrics()))
    found = of_versions(client, compare(versions), numbered=True)
    assert [(one.label, one.version, one.champion) for one in found] == [
        ("7 sft", 7, False), ("8 refine", 8, False), ("9 focus", 9, True)]  # fmt: skip
    made = table(found, [metric_column(["val/loss"])])
    assert row(made, "mid", "refine").cells[0].difference.clear_of_zero
    assert row(made, "mid", "focus").cells[0].difference is None
    assert row(made, "mid", "focus").cells[0].estimate.value == pytest.approx(3.3, abs=0.002)


def test_at_test_time_the_model_as_it_is_stands_before_its_adapted_forms(client, experiment, tmp_path, make_evaluated):
    model = Trained(Stage("post", "nested_refine", "k", "runs/p"), "runs/p/model", "h")

    def scored(adapted_by: str, gain: float | None, questions: float) -> Scored:
        evaluation = make_evaluated("post", adapted_by, gain, 0.5, questions).evaluation
        evaluation = replace(evaluation, settings={"scored_on": adapted_by or "all"})
        run_id = client.create_run(experiment).info.run_id
        client.log_artifact(run_id, str(evaluation.save(tmp_path / (adapted_by or "all"))))
        return Scored(Target(model.stage, model, adapted_by), "on", run_id, metrics=evaluation.metrics())

    scores = [scored("", 0.1, 0.5), scored("sft", None, 0.5), scored("refine", None, 0.9)]
    assert of_test_time(client, scores[:1]) == []
    found = of_test_time(client, scores)
    assert [(one.phase, one.arm) for one in found] == [("test_time", arm) for arm in ("none", "sft", "refine")]
    assert not [name for name in found[0].estimates if "factsqa" not in name], "what the adapted ones lack is left out"
    made = table(found, [metric_column(["eval/factsqa/512/score"])])
    assert [one.cells[0].difference and one.cells[0].difference.clear_of_zero for one in made.rows] == [
        None, False, True]  # fmt: skip


def test_differences_to_the_champion_are_a_table_of_the_arms_that_have_them():
    from refine.reports.cells import Cell, Row

    gone, paired = Cell(None), Cell(None, difference=Estimate(-0.1, 40, -0.2, -0.05))
    made = arms.differences_table(
        [Arm("mid", "sft", "1 sft"), Arm("mid", "refine", "2 refine")], [Row("val/loss", (gone, paired))]
    )
    assert [one.label for one in made.rows] == ["2 refine"] and made.rows[0].cells[0].estimate.value == -0.1
