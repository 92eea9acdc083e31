"""Long work shows one changing line on a terminal; in files and logs only the lasting lines are printed."""

from __future__ import annotations

import pytest

from refine.cli.progress_line import moving_line


def test_a_file_gets_the_lasting_lines_alone(capsys):
    with moving_line() as (show, say):
        show("document 1 of 2")
        say("train: 2 documents")
        show("document 2 of 2")
    captured = capsys.readouterr()
    assert captured.out == "train: 2 documents\n" and "document 1" not in captured.err


def test_an_error_inside_passes_through(capsys):
    with pytest.raises(ValueError, match="no such text"), moving_line() as (show, say):
        say("train: 2 documents")
        show("document 1 of 2")
        raise ValueError("no such text")
    assert capsys.readouterr().out == "train: 2 documents\n"


def test_lasting_lines_keep_their_order(capsys):
    with moving_line() as (show, say):
        for number in range(3):
            show(f"document {number}")
            say(f"line {number}")
    assert capsys.readouterr().out.split("\n")[:3] == ["line 0", "line 1", "line 2"]
