"""The table of arms as text: it fits, nothing is cut, and a star stands only where a difference is clear."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from refine.reports.arms import Arm, all_columns, table
from refine.reports.arms_down import as_text, what_is_marked
from refine.reports.headline import headline


def block(text: str, phase: str) -> list[str]:
    """The lines of a phase."""
    lines = text.splitlines()
    start = lines.index(phase)
    end = next((n for n in range(start, len(lines)) if not lines[n]), len(lines))
    return lines[start + 1 : end]


def values(text: str, phase: str, arm: str) -> list[str]:
    return next(line.split()[1:] for line in block(text, phase) if line.split()[0] == arm)


def test_the_headline_fits_eighty_columns_with_intervals_below_and_stars_where_clear(experiment_arms):
    text = as_text(headline(experiment_arms))
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    assert values(text, "mid-training", "focus")[2:] == ["90*", "90*", "90*", "40*"]
    assert (
        values(text, "mid-training", "focus")[0].startswith("3.45")
        and values(text, "mid-training", "focus")[0][-1] == "*"
    )
    assert values(text, "mid-training", "refine")[2:5] == ["55", "55", "55*"], "the mean is over more samples"
    assert not [line for line in block(text, "mid-training") if line.split()[0] == "sft" and "*" in line]
    assert values(text, "test time", "none") == ["–"] * 5 + ["70"]
    assert values(text, "test time", "refine") == ["–"] * 5 + ["90*"]
    assert any("champion" in line and "[70,97]" in line for line in block(text, "mid-training"))


def test_on_a_wide_terminal_an_interval_stands_beside_its_value(experiment_arms):
    text = as_text(headline(experiment_arms), width=160)
    assert re.search(r"\n  focus +3\.45\d\* \[3\.\d\d,3\.\d\d\] ", text), text


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_table_that_is_too_wide_is_shown_in_parts_that_have_every_value(experiment_arms, width):
    made = table(experiment_arms, all_columns(experiment_arms))
    text = as_text(made, width=width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    known = sum(cell.estimate is not None for row in made.rows for cell in row.cells)
    shown = sum(
        sum(word.rstrip("*").lstrip("-").replace(".", "").isdigit() for word in line.split()[1:])
        for phase_line, line in zip(text.splitlines(), text.splitlines()[1:], strict=False)
        if line.startswith("  ") and line.split()[0] in {one.label for one in experiment_arms}
    )
    assert shown == known


def test_long_names_go_on_below_and_signs_are_not_read_as_styles(experiment_arms):
    odd = [replace(one, label="[red]" + "a" * 35) for one in experiment_arms[:2]]
    text = as_text(headline(odd), "note [bold]")
    assert "[red]" in text and "note [bold]" in text and text.replace("\n", "").count("a") > 60
    assert max(map(len, text.splitlines())) <= 80


def test_the_note_names_the_baselines_that_there_are(experiment_arms):
    assert "differs from sft of its phase or the model as it is" in what_is_marked(headline(experiment_arms))
    assert "differs from sft of its phase, in" in what_is_marked(headline(experiment_arms[:4]))
    assert "No arm could be paired" in what_is_marked(headline(experiment_arms[2:4]))


def test_arms_without_scores_and_no_arms_are_empty_tables():
    assert "model" in as_text(headline([Arm("", "", "model")])) and as_text(headline([])) is not None
