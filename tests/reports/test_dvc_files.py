"""What DVC shows: a row of the best arm, a panel for each curve and score, and no times."""

from __future__ import annotations

import csv
import json

import pytest

from refine.reports import dvc_files
from refine.reports.headline import headline


def rows(file) -> list[dict[str, str]]:
    return list(csv.DictReader(file.open(encoding="utf-8")))


def test_the_summary_is_the_best_arm_under_short_names(tmp_path, experiment_arms):
    made = headline(experiment_arms)
    values = json.loads(dvc_files.write_summary(experiment_arms, made, "val/loss", tmp_path).read_text())
    trained = [one for one in experiment_arms if one.phase != "test_time"]
    best = min(trained, key=lambda one: one.estimates["val/loss"].value)
    assert values["best"] == f"{best.phase} {best.arm}"
    assert values["val"] == pytest.approx(best.estimates["val/loss"].value, abs=1e-6)
    assert "needles.mean" in values and len(values) == 1 + len(made.columns)
    worst = dvc_files.write_summary(experiment_arms, made, "eval/factsqa/512/score", tmp_path)
    most = max(trained, key=lambda one: one.estimates["eval/factsqa/512/score"].value)
    assert json.loads(worst.read_text())["best"] == f"{most.phase} {most.arm}"
    assert json.loads(dvc_files.write_summary(experiment_arms, made, "no/metric", tmp_path).read_text()) == {}


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("val/loss", "val"),
        ("recall/marked_loss", "recall.marked"),
        ("eval/niah_single_1/4096/score", "single_1.4096"),
        ("mean/needles/4096/score", "needles.4096"),
        ("mean/needles/score", "needles.mean"),
        ("eval/piqa/acc/score", "piqa.acc"),
    ],
)
def test_names_are_short(metric, name):
    assert dvc_files.short(metric) == name


def test_each_metric_of_a_phase_has_a_curve_of_its_arms(tmp_path):
    for arm, steps in (("none", 1), ("sft", 3)):
        lines = [
            json.dumps({"step": n, "val/loss": 4.0 - n, "train/ntp_loss": 1.0, "train/seconds": 9.0, "val/loss_x": 1})
            for n in range(steps)
        ]
        (tmp_path / f"{arm}.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "results" / "curves").mkdir(parents=True)
    (tmp_path / "results" / "curves" / "gone.csv").write_text("of an earlier run")
    arms = {"none": tmp_path / "none.jsonl", "sft": tmp_path / "sft.jsonl", "missing": tmp_path / "no.jsonl"}
    files = dvc_files.write_curves({"mid": arms}, tmp_path / "results")
    assert {file.name for file in files} == {"mid-val-loss.csv", "mid-train-ntp_loss.csv"}
    assert {file.name for file in (tmp_path / "results" / "curves").iterdir()} == {file.name for file in files}
    loss = next(file for file in files if file.name == "mid-val-loss.csv")
    assert [(one["arm"], one["step"], one["value"]) for one in rows(loss)] == [
        ("none", "0", "4.0"), ("sft", "0", "4.0"), ("sft", "1", "3.0"), ("sft", "2", "2.0"),
    ]  # fmt: skip


def test_the_folders_that_dvc_expects_are_there_without_curves(tmp_path):
    assert dvc_files.write_curves({}, tmp_path) == [] and list((tmp_path / "curves").iterdir()) == []


def test_each_headline_score_has_its_arms_with_intervals(tmp_path, experiment_arms):
    made = headline(experiment_arms)
    files = dvc_files.write_scores(made, tmp_path)
    assert [file.stem for file in files] == [column.name.replace("/", "-") for column in made.columns]
    first = rows(files[0])[0]
    one = made.rows[0].cells[0].estimate
    assert first["arm"] == f"{made.rows[0].phase} {made.rows[0].arm}"
    assert [float(first[name]) for name in ("value", "low", "high")] == pytest.approx([one.value, *one.interval])


def test_the_templates_of_the_panels_are_there(checkout):
    import yaml

    plots = yaml.safe_load((checkout / "dvc.yaml").read_text())["stages"]["experiment"]["plots"]
    used = {name: one for plot in plots if isinstance(plot, dict) for name, one in plot.items()}
    assert set(used) == {f"results/{dvc_files.CURVES}", f"results/{dvc_files.SCORES}"}
    for one in used.values():
        text = (checkout / ".dvc" / "plots" / f"{one['template']}.json").read_text()
        assert "<DVC_METRIC_DATA>" in text and json.loads(text)["height"]
