"""The folders that the pipeline writes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from refine import paths


@pytest.mark.parametrize("inside", ["", ".dvc/tmp/exps/tmpab12", ".dvc/tmp/exps/tmpab12/flows"])
def test_home_outlasts_the_folder_that_dvc_runs_an_experiment_in(tmp_path, monkeypatch, inside):
    monkeypatch.delenv("REFINE_HOME", raising=False)
    folder = tmp_path / inside
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(folder)
    assert paths.home() == tmp_path.resolve()


def test_home_is_refine_home_if_it_is_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFINE_HOME", "elsewhere")
    assert paths.home() == (tmp_path / "elsewhere").resolve()


def test_a_shipped_model_has_a_name_and_a_folder_of_that_name_wins(tmp_path, monkeypatch):
    assert paths.model("sample/delta_net") == paths.SHIPPED / "delta_net"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample" / "delta_net").mkdir(parents=True)
    assert paths.model("sample/delta_net") == Path("sample/delta_net")
