"""The folders that the pipeline writes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from refine import paths
from refine.errors import SettingError


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


def test_hidden_files_are_no_files(tmp_path):
    for name in ("a.parquet", "b/c.parquet", "._a.parquet", ".DS_Store", ".data.x.unfinished/d.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in paths.visible_files(tmp_path)] == ["a.parquet", "c.parquet"]
    assert paths.visible_files(tmp_path / ".data.x.unfinished")  # a folder that is named counts


@pytest.mark.parametrize("name", ["what?", "two\nlines", "bell\a"])
def test_a_home_that_no_database_address_can_name_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.setenv("REFINE_HOME", str(tmp_path / name))
    with pytest.raises(SettingError, match="in its path, which the address of a database cannot have: set REFINE_HOME"):
        paths.home()
