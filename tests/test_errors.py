"""Error messages are one line, and a mistyped name comes with the nearest known one."""

from __future__ import annotations

from refine.errors import nearest, reason


def test_the_nearest_name_is_offered_if_there_is_one():
    assert nearest("evalute", ["evaluate", "train"]) == " (did you mean 'evaluate'?)"
    assert nearest("x", ["evaluate", "train"]) == ""


def test_a_reason_is_one_line_of_bounded_length_and_never_empty():
    assert reason(ValueError("first\n  second")) == "first second"
    assert len(reason("a" * 500)) == 200
    assert reason(TimeoutError()) == "TimeoutError"
