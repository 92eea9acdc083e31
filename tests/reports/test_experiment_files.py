"""An experiment's files, as DVC reads them: a row for each arm, and a picture."""

from __future__ import annotations

import json
import shutil

import pytest

from refine.errors import DataError
from refine.reports import experiment_files
from refine.reports.arms import of_versions
from refine.reports.comparison import compare
from refine.tracking.registry import Version

SCORES = {"val/loss": 3.5, "val/loss_low": 3.4, "val/accuracy": 0.3, "eval/niah/256/score": 0.5}


def version(number: int, phase: str, arm: str, loss: float) -> Version:
    return Version("m", number, {"arm": arm, "phase": phase}, (), {**SCORES, "val/loss": loss})


VERSIONS = [version(1, "mid", "sft", 3.6), version(2, "mid", "refine", 3.5)]


def test_each_arm_has_a_file_and_arms_that_are_gone_have_none(tmp_path, client):
    def write(versions):
        comparison = compare(versions)
        return experiment_files.write(comparison, of_versions(client, comparison), tmp_path)

    write([*VERSIONS, version(3, "post", "sft", 3.4)])
    files = write(VERSIONS)
    rows = {file.name: json.loads(file.read_text()) for file in (tmp_path / "metrics").iterdir()}
    assert rows == {
        "mid-sft.json": {"val/loss": 3.6, "eval/niah/256/score": 0.5},
        "mid-refine.json": {"val/loss": 3.5, "eval/niah/256/score": 0.5},
    }
    assert [file.name for file in files] == ["comparison.md", "comparison.csv", "comparison.png"]
    assert all(file.stat().st_size for file in files)


def test_the_text_is_one_table_that_fits_and_says_what_it_marks_and_where_the_rest_is(tmp_path, experiment_arms):
    files = experiment_files.write(compare(VERSIONS), experiment_arms, tmp_path)
    text = files[0].read_text()
    assert text.startswith("```text\n") and text.endswith("```\n") and max(map(len, text.splitlines())) <= 80
    shown = experiment_files.headline_text(tmp_path)
    assert "```" not in shown and shown in text and "refine_" not in shown
    assert "[low,high]: 95 % interval" in shown and "*: differs from sft" in shown and "refine summary --all" in shown
    assert [line for line in shown.splitlines() if line.startswith(("mid", "post", "test"))] == [
        "mid-training", "post-training", "test time"]  # fmt: skip


def test_without_an_experiment_there_is_one_line(tmp_path):
    with pytest.raises(DataError, match="make run"):
        experiment_files.headline_text(tmp_path)


@pytest.mark.slow
def test_dvc_shows_a_row_an_arm_and_the_picture_without_a_network(tmp_path, monkeypatch, checkout, client):
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
    comparison = compare(VERSIONS)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "val/loss": 3.6}\n{"step": 4, "val": 3.5}\n')
    trainings = {"mid": {"sft": tmp_path / "metrics.jsonl"}}
    experiment_files.write(comparison, of_versions(client, comparison), tmp_path / "made", "val/loss", trainings)
    with Repo.init(no_scm=True) as repo:
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        repo.reproduce()
        shown = repo.metrics.show()[""]["data"]
        summary = shown.pop("results/summary.json")["data"]
        assert {name: one["data"]["val/loss"] for name, one in shown.items()} == {
            "results/metrics/mid-sft.json": 3.6,
            "results/metrics/mid-refine.json": 3.5,
        }
        assert summary == {"best": "mid refine", "val": 3.5}
    from dvc.cli import main

    shutil.copytree(checkout / ".dvc" / "plots", tmp_path / ".dvc" / "plots")
    assert main(["plots", "show", "-q"]) == 0
    page = (tmp_path / "dvc_plots" / "index.html").read_text()
    for panel in ("mid-val-loss.csv", "scores/val-loss.csv", '"field": "arm"', '"field": "low"'):
        assert panel in page, panel
    assert "comparison.png" in page and list((tmp_path / "dvc_plots" / "static").glob("*comparison.png"))
