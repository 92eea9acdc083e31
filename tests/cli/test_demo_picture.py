"""The picture of `refine demo`: three panels, wide enough to be read on a page of 800 pixels."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from refine.cli.demo_picture import draw_demonstration
from tests.cli.demo_by_hand import made_by_hand


def test_it_is_1200_pixels_wide(tmp_path):
    path = draw_demonstration(made_by_hand(), tmp_path / "demo.png")
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    assert width == 1200 and 800 <= height <= 1200


def test_the_text_of_the_picture(tmp_path):
    drawn = draw_demonstration(made_by_hand(), tmp_path / "demo.svg").read_text(encoding="utf-8")
    for text in ("2 of 2; answers 7654321: right", "0 of 2; answers 2222222: wrong", "rollouts at marks"):
        assert f"<!-- {text} -->" in drawn


@pytest.mark.parametrize("at_marks", [(), made_by_hand().exercise.at_marks])
def test_an_exercise_without_marks_is_drawn_too(tmp_path, at_marks):
    shown = made_by_hand()
    shown = replace(shown, exercise=replace(shown.exercise, at_marks=at_marks, told=()))
    assert draw_demonstration(shown, tmp_path / "demo.png").stat().st_size > 10_000
