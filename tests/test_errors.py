"""Error messages are one line, and a mistyped name comes with the nearest known one."""

from __future__ import annotations

import pytest

from refine import errors
from refine.errors import DataError, RefineError, nearest, reason, without_secrets


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


@pytest.mark.parametrize("text", ["no address here", "a@b", "12:30", "s3://bucket/folder", "http://127.0.0.1:5000"])
def test_a_message_without_secrets_stays_as_it_is(text):
    assert without_secrets(text) == text


def test_a_message_that_quotes_a_line_break_is_one_line():
    assert str(RefineError("a\nb\r\n: no such file")) == "a b : no such file"


def test_an_endless_name_in_a_message_loses_its_middle():
    message = str(DataError(f"{'x' * 5000}/params.yaml: no such file"))
    assert len(message) < 300 and message.startswith("xxx") and message.endswith("/params.yaml: no such file")
