"""Versions side by side: each value with its count and interval, and only the settings that differ."""

from __future__ import annotations

import math
from dataclasses import replace

from refine.reports.comparison import compare
from refine.tracking.registry import Version

SCORES = {"val/loss": 3.5, "val/loss_low": 3.4, "val/loss_high": 3.6, "val/sequences": 32.0, "val/tokens": 9.0}


def version(number: int, arm: str, settings: dict | None = None, champion: bool = False, **metrics: float) -> Version:
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    tags = {"arm": arm, "identity.data": "abc", "experiment": "sample"}
    return Version("m", number, tags, ("champion",) if champion else (), {**SCORES, **named}, settings or {})


def test_values_counts_intervals_and_the_best_stand_in_one_row():
    found = compare([version(1, "sft"), version(2, "refine", champion=True, val__loss=3.45)])
    assert found.headers() == ["1 (sft)", "2 (refine) champion"]
    assert found.table()[1] == ["val/loss", "32", "3.5000 [3.4000, 3.6000]", "**3.4500** [3.4000, 3.6000]"]
    assert [row.label for row in found.rows] == ["val/loss"], "counts and bounds are no rows of their own"


def test_more_is_better_except_for_losses_and_equals_have_no_best():
    score = "eval__niah__256__score"
    found = compare([version(1, "a", **{score: 0.2}), version(2, "b", **{score: 0.4})])
    texts = {line[0]: line[2:] for line in found.table()}
    assert texts["eval/niah/256/score"] == ["0.2000", "**0.4000**"]
    assert texts["val/loss"] == ["3.5000 [3.4000, 3.6000]"] * 2


def test_lengths_are_in_the_order_of_numbers_and_validation_comes_first():
    names = ["eval__n__1024__score", "eval__n__512__score", "second_domain__loss", "train__loss", "val__accuracy"]
    found = compare([version(1, "a", **dict.fromkeys(names, 1.0))])
    assert [row.label for row in found.rows] == [
        "val/loss",
        "val/accuracy",
        "second_domain/loss",
        "eval/n/512/score",
        "eval/n/1024/score",
    ]


def test_a_missing_value_or_nan_is_never_the_best():
    first, second = version(1, "a", val__accuracy=math.nan), version(2, "b")
    third = version(3, "c", val__accuracy=0.1)
    row = compare([first, second, third]).rows[1]
    assert [cell.estimate is None for cell in row.cells] == [False, True, False]
    assert not any(cell.best for cell in row.cells)


def test_counts_that_differ_are_all_shown_each_once():
    counts = [32.0, 32.0, 16.0, 32.0, 16.0]
    found = compare([version(n, "a", val__sequences=count) for n, count in enumerate(counts)])
    assert found.table()[1][1] == "32 / 16"


def test_only_settings_that_differ_are_shown():
    first = version(1, "sft", {"training.steps": 30, "seed": 1, "arm": "sft"})
    second = version(2, "refine", {"training.steps": 60, "seed": 1, "arm": "refine", "objective.k": 5})
    assert compare([first, second]).differing == (("training.steps", ("30", "60")),)


def test_markdown_lines_up():
    found = compare([version(1, "sft"), version(2, "refine", champion=True, val__loss=3.45)])
    lines = found.markdown().splitlines()
    assert len({len(line) for line in lines}) == 1 and lines[0].startswith("| metric")


def test_many_versions_are_shown_in_a_table_for_each_phase():
    def of(number: int, phase: str, arm: str, loss: float) -> Version:
        return Version("m", number, {"phase": phase, "arm": arm}, metrics={"val/loss": loss})

    mid = [of(n, "mid", f"arm{n}", 3.0 + n) for n in (1, 2, 3)]
    post = [of(n, "post", f"arm{n}", 3.0 + n) for n in (4, 5, 6)]
    first, second = compare(mid + post).markdown().split("\n\n")
    assert "1 (mid arm1)" in first and "6 (post arm6)" in second and "mid" not in second
    assert "**4.0000**" in first and "*" not in second, "the best of a part was taken for the best of all"


def test_an_extra_evaluation_of_one_version_adds_no_row_to_others():
    def with_extra(number: int, **extra: float) -> Version:
        named = {name.replace("__", "/"): value for name, value in extra.items()}
        return replace(version(number, "a"), extra=named)

    few = {"eval__n__64__score": 1.0, "eval__n__64__samples": 5.0}
    labels = lambda versions: [row.label for row in compare(versions).rows]  # noqa: E731
    assert labels([with_extra(1, **few), version(2, "b")]) == ["val/loss"]
    assert labels([with_extra(1, **few)]) == ["val/loss", "eval/n/64/score"], "alone it is shown with them"
    assert labels([with_extra(1, **few), with_extra(2, **few)]) == ["val/loss", "eval/n/64/score"]
    more = {**few, "eval__n__64__samples": 50.0}
    assert labels([with_extra(1, **few), with_extra(2, **more)]) == ["val/loss"], "of other samples"
    assert labels([with_extra(1, val__loss=1.0), version(2, "b")]) == ["val/loss"]
    assert not any(cell.best for cell in compare([with_extra(1, val__loss=1.0), version(2, "b")]).rows[0].cells)
