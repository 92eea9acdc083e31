"""An experiment's files, as DVC reads them: a row for each arm, and a picture."""

from __future__ import annotations

import json
import shutil

import pytest

from refine.phases.stages import Scored, Stage, Target, Trained
from refine.reports import experiment_files
from refine.tracking.registry import Version

SCORES = {"val/loss": 3.5, "val/loss_low": 3.4, "val/accuracy": 0.3, "eval/niah/256/score": 0.5}


def version(number: int, phase: str, arm: str, loss: float) -> Version:
    return Version("m", number, {"arm": arm, "phase": phase}, (), {**SCORES, "val/loss": loss})


VERSIONS = [version(1, "mid", "sft", 3.6), version(2, "mid", "refine", 3.5)]


def test_each_arm_has_a_file_and_arms_that_are_gone_have_none(tmp_path):
    experiment_files.write([*VERSIONS, version(3, "post", "sft", 3.4)], tmp_path)
    comparison, files = experiment_files.write(VERSIONS, tmp_path)
    rows = {file.name: json.loads(file.read_text()) for file in (tmp_path / "metrics").iterdir()}
    assert rows == {
        "mid-sft.json": {"val/loss": 3.6, "eval/niah/256/score": 0.5},
        "mid-refine.json": {"val/loss": 3.5, "eval/niah/256/score": 0.5},
    }
    assert [file.name for file in files] == ["comparison.md", "comparison.csv", "comparison.png"]
    assert all(file.stat().st_size for file in files) and len(comparison.versions) == 2


def test_below_the_comparison_a_model_stands_beside_itself_adapted_to_each_prompt(tmp_path):
    model = Trained(Stage("post", "nested_refine", "k", "runs/p"), "runs/p/model", "h")

    def scored(adapted_by: str, score: float, **more: float) -> Scored:
        found = {"eval/qa/512/score": score, "eval/qa/512/score_low": score - 0.1, "eval/qa/512/score_high": 0.9}
        return Scored(
            Target(model.stage, model, adapted_by), "on", metrics={**found, "eval/qa/512/samples": 40, **more}
        )

    scores = [scored("", 0.2, **{"val/loss": 3.5}), scored("sft", 0.3), scored("refine", 0.4)]
    assert experiment_files.test_time(scores[:1]) == ""
    experiment_files.write(VERSIONS, tmp_path, experiment_files.test_time(scores))
    text = (tmp_path / "comparison.md").read_text()
    comparison, adapted = text.split("\n\n")
    assert "val/loss" in comparison and "val/loss" not in adapted
    head, _, row = adapted.splitlines()
    assert [cell.strip() for cell in head.split("|")[3:-1]] == [
        "post nested_refine, as it is",
        "adapted by sft",
        "adapted by refine",
    ]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "eval/qa/512/score",
        "40",
        "0.2000 [0.1000, 0.9000]",
        "0.3000 [0.2000, 0.9000]",
        "**0.4000 [0.3000, 0.9000]**",
    ]


@pytest.mark.slow
def test_dvc_shows_a_row_an_arm_and_the_picture_without_a_network(tmp_path, monkeypatch, checkout):
    """By DVC's own functions, on a stage that declares them as dvc.yaml does."""
    import yaml
    from dvc.repo import Repo

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    stage = yaml.safe_load((checkout / "dvc.yaml").read_text())["stages"]["experiment"]
    (tmp_path / "dvc.yaml").write_text(
        yaml.safe_dump(
            {
                "stages": {
                    "experiment": {"cmd": "cp -r made results", **{k: stage[k] for k in ("outs", "metrics", "plots")}}
                }
            }
        )
    )
    experiment_files.write(VERSIONS, tmp_path / "made")
    with Repo.init(no_scm=True) as repo:
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        repo.reproduce()
        shown = repo.metrics.show()[""]["data"]
        assert {name: one["data"]["val/loss"] for name, one in shown.items()} == {
            "results/metrics/mid-sft.json": 3.6,
            "results/metrics/mid-refine.json": 3.5,
        }
    from dvc.cli import main

    assert main(["plots", "show", "-q"]) == 0
    page = (tmp_path / "dvc_plots" / "index.html").read_text()
    assert "comparison.png" in page and list((tmp_path / "dvc_plots" / "static").glob("*comparison.png"))
