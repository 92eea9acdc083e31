"""What `make run` prints at its end."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from refine.cli.summary import summary
from refine.errors import DataError


def test_it_shows_the_table_the_files_and_where_to_look(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFINE_HOME", str(tmp_path))
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "comparison.md").write_text("| metric | 1 (none) |\n")
    (tmp_path / "results" / "comparison.csv").write_text("{}")
    output = CliRunner().invoke(summary).output
    assert "| metric | 1 (none) |" in output
    assert "results/comparison.csv" in output
    assert "refine up   then http://127.0.0.1:5000" in output and "refine up   then http://127.0.0.1:4200" in output
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@mlflow:5000")
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    output = CliRunner().invoke(summary).output
    assert "http://mlflow:5000" in output and "http://prefect:4200\n" in output and "secret" not in output


def test_without_an_experiment_it_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="make run"):
        CliRunner().invoke(summary, catch_exceptions=False)
