"""`refine register`: what a person trained by hand is recorded, once, and can be loaded, scored and promoted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from refine.cli.register import register
from refine.errors import RefineError
from refine.models import from_pretrained
from refine.tracking.registry import versions


def run(*arguments):
    return CliRunner().invoke(register, [str(one) for one in arguments], catch_exceptions=False)


def test_a_run_folder_becomes_a_version_with_its_curves_once(home, client, mid, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = mid("mine")
    done = run(tmp_path / "mine", "--name", "by-hand")
    assert "registered: by-hand version 1 (mid refine)" in done.output
    assert "next: refine evaluate models:/by-hand/1" in done.output
    assert run(tmp_path / "mine", "--name", "by-hand").output == done.output
    [version] = versions(client, "by-hand")
    assert version.metrics["val/loss"] == record["metrics"]["val/loss"] and version.evaluation == ""
    assert version.settings["training.steps"] == 6 and version.tags["arm"] == "refine"
    curve = client.get_metric_history(version.run_id, "train/loss")
    assert [point.step for point in curve] == [1, 2, 3, 4, 5, 6]
    assert version.tags["identity.commit"] == record["origin"]["commit"]
    loaded = from_pretrained("models:/by-hand/latest")
    assert loaded.config.model_type == "delta_net"


def test_a_training_records_itself_when_asked(home, client, params, prepared_folder, start_model, tmp_path):
    from refine.cli.train import train

    asked = ["mid", "--arm", "sft", "--model", start_model, "--data", prepared_folder, "--params", params]
    asked += ["--output", tmp_path / "own", "--record", "by-hand"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refine.system.processes.die_with_parent", lambda: None)
        done = CliRunner().invoke(train, [str(one) for one in asked], catch_exceptions=False)
        assert "registered: by-hand version 1 (mid sft)" in done.output
        again = CliRunner().invoke(train, [str(one) for one in asked], catch_exceptions=False)
    assert "nothing to do" in again.output and [one.number for one in versions(client, "by-hand")] == [1]


def test_a_model_folder_becomes_one_too(home, client, start_model):
    assert "registered: others version 1" in run(start_model, "--name", "others").output
    [version] = versions(client, "others")
    assert version.metrics == {} and version.tags["identity.data"] == "unknown"


def test_what_is_no_model_is_refused_before_mlflow_is_asked(start_model, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "identity.json").write_text(json.dumps({}))
    for folder, said in ((tmp_path, "expected a run folder"), (unfinished, "has not finished")):
        with pytest.raises(RefineError, match=said):
            run(folder, "--name", "m")
    with pytest.raises(RefineError, match="is no name for a registered model"):
        run(start_model, "--name", "../m")
    assert not Path("mlruns").exists()
