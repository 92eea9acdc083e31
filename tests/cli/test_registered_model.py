"""A model of the registry on the command line: its folder for a while, and its scores."""

from __future__ import annotations

from pathlib import Path

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


def test_scores_join_the_version_and_those_from_fewer_samples_are_named(client, version):
    assert record_scores("models:/m/1", {"eval/qa/64/score": 0.5}) == "m version 1"
    quick = record_scores("models:/m/1", {"val/loss": 9.0, "val/sequences": 2.0})
    assert quick == "m version 1, except scores that it has from more samples"
    assert version_of(client, "m", "1").metrics == {**SCORES, "eval/qa/64/score": 0.5}
    assert record_scores("some/folder", SCORES) is None
