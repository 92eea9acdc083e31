"""What `make run` prints at its end."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from refine.cli.summary import summary
from refine.errors import DataError


def test_it_shows_the_table_the_files_and_where_to_look(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "comparison.md").write_text("| metric | 1 (none) |\n")
    (tmp_path / "results" / "comparison.csv").write_text("{}")
    said = CliRunner().invoke(summary).output
    assert "| metric | 1 (none) |" in said
    assert "results/comparison.csv" in said
    assert "mlflow server" in said and "prefect server start" in said


def test_without_an_experiment_it_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="make run"):
        CliRunner().invoke(summary, catch_exceptions=False)
