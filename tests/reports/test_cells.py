"""Cells mark the best of their row, and tables have one form."""

from __future__ import annotations

import math

import pytest

from refine.evaluation.intervals import Estimate
from refine.reports.cells import Cell, mark_best, markdown_table


def cells(*values: float | None) -> list[Cell]:
    return [Cell(None if value is None else Estimate(value, 1, None, None)) for value in values]


@pytest.mark.parametrize(
    ("values", "less_is_better", "best"),
    [
        ((1.0, 2.0, None), False, [False, True, False]),
        ((1.0, 2.0, 1.0), True, [True, False, True]),
        ((1.0, 1.0), False, [False, False]),
        ((1.0, None), False, [False, False]),
        ((math.nan, 1.0, 2.0), True, [False, True, False]),
    ],
)
def test_the_best_finite_value_is_marked_and_equals_all_are(values, less_is_better, best):
    assert [cell.best for cell in mark_best(cells(*values), less_is_better)] == best


def test_a_difference_has_its_sign_and_a_mark_if_it_is_clear_of_zero():
    clear, unclear = Estimate(0.25, 10, 0.125, 0.5), Estimate(-0.25, 10, -0.5, 0.125)
    assert Cell(None, difference=clear).difference_text(100.0, 1, " *") == "+25.0 [12.5, 50.0] *"
    assert Cell(None, difference=unclear).difference_text(1.0, 3, " *") == "-0.250 [-0.500, 0.125]"
    assert Cell(None).difference_text(1.0, 3, " *") == "–"


def test_a_table_is_narrow_or_its_columns_line_up():
    lines = [["", "a score"], ["model", "1"]]
    assert markdown_table(lines) == "|  | a score |\n| --- | --- |\n| model | 1 |"
    assert markdown_table(lines, aligned=True) == ("|       | a score |\n| ----- | ------- |\n| model | 1       |")
