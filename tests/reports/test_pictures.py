"""Pictures are drawn also where scores are missing, and nothing but the file is left.

`draw_tables` is tested with the report's files, in test_paper_tables.py.
"""

from __future__ import annotations

import pytest

from refine.evaluation.intervals import Estimate
from refine.evaluation.record import Answer, Evaluation, NextTokenScore, PositionScore, TaskScore
from refine.reports.pictures import draw_evaluations, reach

POSITIONS = (PositionScore(2, 16, 3.5, 0.1, 30, (3.4, 3.6)), PositionScore(17, 32, 3.2, 0.1, 32))
NEXT_TOKEN = {"val": NextTokenScore(3.4, 0.1, 62, 2, POSITIONS, (3.3, 3.5), None, (3.3, 3.5), (31, 31))}
TASKS = (TaskScore.of("factsqa", 64, [0.0, 1.0, 1.0], [Answer("", 1, 10, 0, -2.0)] * 3),)


@pytest.mark.parametrize(("next_token", "tasks"), [(NEXT_TOKEN, TASKS), (NEXT_TOKEN, ()), ({}, TASKS)])
def test_an_evaluation_is_drawn_with_the_scores_that_it_has(next_token, tasks, tmp_path):
    found = Evaluation("model", next_token, tasks, (), 1.0)
    path = draw_evaluations([found, found], tmp_path / "scores.png")
    assert path.read_bytes().startswith(b"\x89PNG") and [file.name for file in tmp_path.iterdir()] == ["scores.png"]


def test_an_interval_reaches_to_its_bounds_and_never_backwards():
    estimates = [Estimate(0.5, 9, 0.25, 1.0), Estimate(0.5, 9, None, None), Estimate(0.5, 9, 0.6, 0.4)]
    assert reach(estimates, [1.0, 1.0, 100.0]) == [[0.25, 0.0, 0.0], [0.5, 0.0, 0.0]]
