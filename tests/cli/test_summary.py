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
    (tmp_path / "results" / "comparison.md").write_text("```text\nmid-training\n  sft  3.5\n```\n")
    (tmp_path / "results" / "comparison.csv").write_text("{}")
    output = CliRunner().invoke(summary).output
    assert "\nmid-training\n  sft  3.5\n" in output and "```" not in output
    assert "results/: comparison.csv, comparison.md" in output
    assert max(map(len, output.splitlines())) <= 80
    assert "refine up   then http://127.0.0.1:5000" in output and "refine up   then http://127.0.0.1:4200" in output
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@mlflow:5000")
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    output = CliRunner().invoke(summary).output
    assert "http://mlflow:5000" in output and "http://prefect:4200\n" in output and "secret" not in output


def test_without_an_experiment_it_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="make run"):
        CliRunner().invoke(summary, catch_exceptions=False)


def test_all_shows_every_score_from_the_csv(tmp_path, monkeypatch, experiment_arms):
    from refine.reports.comparison import compare
    from refine.reports.experiment_files import write

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFINE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    write(compare([]), experiment_arms, tmp_path / "results")
    short, everything = CliRunner().invoke(summary).output, CliRunner().invoke(summary, ["--all"]).output
    assert "log_prob" in everything and "log_prob" not in short and "focus" in short
    assert "*: differs from sft of its phase or the model as it is" in " ".join(everything.split())
    assert max(map(len, [*short.splitlines(), *everything.splitlines()])) <= 80
    (tmp_path / "results" / "comparison.csv").unlink()
    assert isinstance(CliRunner().invoke(summary, ["--all"]).exception, DataError)
