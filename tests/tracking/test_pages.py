"""Links to MLflow's pages: only if a server shows them, and without a password."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote

from mlflow.exceptions import MlflowException

from refine.tracking import pages
from refine.tracking.registry import Version


class Runs:
    """A client that has the runs `a` and `b` of experiment 1, and `c` of 2."""

    def get_run(self, run_id: str) -> SimpleNamespace:
        if run_id not in ("a", "b", "c"):
            raise MlflowException("no such run")
        return SimpleNamespace(info=SimpleNamespace(experiment_id="2" if run_id == "c" else "1"))


VERSIONS = [Version("m", number, {}, run_id=run) for number, run in enumerate(["a", "b", "gone"])]


def test_the_comparison_page_has_the_runs_that_exist(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@mlflow:5000/")
    page = pages.comparison_page(Runs(), VERSIONS)
    place, _, query = page.partition("?")
    assert place == "http://mlflow:5000/#/metric"
    assert parse_qs(query) == {
        "runs": ['["a","b"]'],
        "experiments": ['["1"]'],
        "metric": ['"val/loss"'],
        "plot_metric_keys": ['["val/loss"]'],
        "x_axis": ["step"],
    }
    two = pages.comparison_page(Runs(), [VERSIONS[0], Version("m", 9, {}, run_id="c")])
    assert parse_qs(two.partition("?")[2])["experiments"] == ['["1","2"]']
    assert pages.run_page("1", "a") == "http://mlflow:5000/#/experiments/1/runs/a"
    assert "secret" not in unquote(page)


def test_post_training_has_a_curve_of_its_own(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000/")
    mid, post = (
        Version("m", n, {"phase": phase}, run_id=run) for n, (phase, run) in enumerate((("mid", "a"), ("post", "b")))
    )
    both = parse_qs(pages.comparison_page(Runs(), [mid, post]).partition("?")[2])
    assert both["plot_metric_keys"] == ['["val/loss","val/answer_loss"]']
    alone = parse_qs(pages.comparison_page(Runs(), [post, replace(post, run_id="a")]).partition("?")[2])
    assert alone["plot_metric_keys"] == ['["val/answer_loss"]']


def test_there_is_no_page_of_one_run_or_without_a_server(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert pages.comparison_page(Runs(), VERSIONS[1:]) == ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////tmp/mlflow.db")
    assert pages.comparison_page(Runs(), VERSIONS) == "" and pages.run_page("1", "a") == ""
