"""Pictures are drawn also where a version lacks a score or stands alone, and nothing but the file is left.

`draw_tables` is tested with the report's files, in test_paper_tables.py.
"""

from __future__ import annotations

import pytest
from PIL import Image

from refine.evaluation.intervals import Estimate
from refine.evaluation.record import Answer, Evaluation, NextTokenScore, PositionScore, TaskScore
from refine.reports.comparison import compare
from refine.reports.pictures import _reach, draw_comparison, draw_evaluations
from refine.tracking.registry import Version

SCORES = {"val/loss": 3.5, "val/loss_low": 3.4, "val/loss_high": 3.6, "second_domain/loss": 4.0}


def version(number: int, metrics: dict[str, float]) -> Version:
    return Version("m", number, {"arm": "sft", "phase": "mid"}, ("champion",) if number == 1 else (), metrics)


def colours(path) -> set:
    with Image.open(path) as picture:
        return {colour for _, colour in picture.convert("RGB").getcolors(2**24)}


@pytest.mark.parametrize(
    "versions",
    [
        [version(1, SCORES), version(2, {"val/loss": 3.4})],  # the second was not scored on the second domain
        [version(1, {"val/loss": 3.5})],
        [version(n, {**SCORES, **{f"eval/niah/{length}/score": 0.5 for length in range(7)}}) for n in range(9)],
    ],
)
def test_versions_are_drawn_the_champion_in_its_colour(versions, tmp_path):
    path = draw_comparison(compare(versions), tmp_path / "results" / "comparison.png")
    assert (0x2A, 0x8C, 0x4A) in colours(path)
    assert ((0x3B, 0x6E, 0xA5) in colours(path)) == (len(versions) > 1)
    assert path.stat().st_size < 200_000 and [file.name for file in path.parent.iterdir()] == ["comparison.png"]


def test_a_comparison_without_a_metric_is_an_empty_picture(tmp_path):
    assert draw_comparison(compare([version(1, {})]), tmp_path / "none.svg").exists()


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
    assert _reach(estimates, [1.0, 1.0, 100.0]) == [[0.25, 0.0, 0.0], [0.5, 0.0, 0.0]]
