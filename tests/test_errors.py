"""Error messages are one line, and a mistyped name comes with the nearest known one."""

from __future__ import annotations

from refine import errors
from refine.errors import RefineError, nearest, reason


def test_the_nearest_name_is_offered_if_there_is_one():
    assert nearest("evalute", ["evaluate", "train"]) == " (did you mean 'evaluate'?)"
    assert nearest("x", ["evaluate", "train"]) == ""


def test_a_reason_is_one_line_of_bounded_length_and_never_empty():
    assert reason(ValueError("first\n  second")) == "first second"
    assert len(reason("a" * 500)) == 200
    assert reason(TimeoutError()) == "TimeoutError"


def test_every_error_of_ours_is_one_that_a_command_prints_in_one_line():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) >= 6 and all(issubclass(kind, RefineError) for kind in kinds)
