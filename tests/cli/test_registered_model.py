"""A model of the registry on the command line: its folder for a while, and its scores."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from refine.cli.registered_model import fetched, record_scores
from refine.errors import ServiceError
from refine.tracking.registry import register, version_of

SCORES = {"val/loss": 3.5, "val/sequences": 32.0}


@pytest.fixture
def version(client, experiment, model_folder):
    """Version 1 of the registered model `m`."""
    run = client.create_run(experiment).info.run_id
    return register(
        client, "m", model_folder, key="k", run_id=run, experiment_id=experiment, metrics=SCORES, settings={}, tags={}
    )


def test_a_registered_model_is_a_folder_inside_the_block(version, model_folder):
    with fetched("models:/m/1") as folder:
        assert (Path(folder) / "config.json").read_bytes() == (model_folder / "config.json").read_bytes()
    with fetched("some/folder") as folder:
        assert folder == "some/folder"


def test_a_malformed_name_is_refused_before_mlflow_is_used(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(ServiceError, match="expected models:/NAME@ALIAS"), fetched("models:/m"):
        pass


def evaluation(metrics: dict[str, float], scored_on: str = "these") -> SimpleNamespace:
    """What record_scores needs of an evaluation."""
    return SimpleNamespace(metrics=lambda: metrics, settings={"scored_on": scored_on})


def test_a_part_s_scores_are_extra_and_those_from_fewer_samples_are_named(client, version, tmp_path):
    part = evaluation({"eval/qa/64/score": 0.5})
    assert record_scores("models:/m/1", part, tmp_path) == "m version 1, as extra scores"
    quick = record_scores("models:/m/1", evaluation({"val/loss": 9.0, "val/sequences": 2.0}), tmp_path)
    assert quick == "m version 1, as extra scores, except those that it has from more samples"
    found = version_of(client, "m", "1")
    assert found.metrics == SCORES and found.extra == {"eval/qa/64/score": 0.5}
    assert record_scores("some/folder", part, tmp_path) is None


def test_complete_scores_are_its_own_once_and_others_only_when_asked(client, version, tmp_path):
    record_scores("models:/m/1", evaluation({"val/loss": 3.4}), tmp_path, complete=True)
    own = version_of(client, "m", "1")
    assert own.metrics["val/loss"] == 3.4 and own.evaluation == "these" and own.tags["val/loss"] == "3.4000"
    record_scores("models:/m/1", evaluation({"val/loss": 1.0}, "others"), tmp_path, complete=True)
    assert version_of(client, "m", "1").metrics == own.metrics
    record_scores("models:/m/1", evaluation({"val/loss": 1.0}, "others"), tmp_path, complete=True, rescore=True)
    again = version_of(client, "m", "1")
    assert again.metrics["val/loss"] == 1.0 and again.evaluation == "others"
