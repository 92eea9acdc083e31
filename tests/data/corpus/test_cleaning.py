"""Cleaning removes markup, line numbers and notes, and keeps speakers, scenes and stage directions."""

from __future__ import annotations

import pytest

from refine.data.corpus import cleaning

SCENE = """# Macbeth

## SCENE I. A desert place.

_Thunder and lightning. Enter three
Witches_

**First Witch**\x20\x20
When shall we three meet again\x20\x20
In thunder, lightning, or in rain?

**MACBETH**\x20\x20
_\\[Aside]_\x20\x20
Two truths are told, _verily_,

__\\[Reads]_

*Exeunt.*
"""


def test_a_play_reads_as_a_play():
    assert cleaning.play(SCENE).split("\n") == [
        "Macbeth",
        "",
        "SCENE I. A desert place.",
        "",
        "[Thunder and lightning. Enter three Witches]",
        "",
        "First Witch:",
        "When shall we three meet again",
        "In thunder, lightning, or in rain?",
        "",
        "MACBETH:",
        "[Aside]",
        "Two truths are told, verily,",
        "",
        "[Reads]",
        "",
        "[Exeunt.]",
        "",
    ]


def test_line_numbers_dots_and_marginal_notes_leave_the_verse():
    text = (
        "\ufeffAgainst the foe, and brought'st him thence        10\r\n"
        "............Of Cerberus\r\n>From haunted spring\r\n"
        "They *contrive                *Jagnarimu.\r\nin the year 1645.\r\n"
    )
    assert cleaning.verse(text).split("\n") == [
        "Against the foe, and brought'st him thence",
        "Of Cerberus",
        "From haunted spring",
        "They *contrive",
        "in the year 1645.",
        "",
    ]


def test_footnotes_go_with_the_marks_that_point_to_them():
    text = (
        "They come, from Deva's2 side,\nwhere she seeks the tide.3\n\n2 The Dee of Chester.\n\n3 The Irish Sea.\n\nEnd."
    )
    assert cleaning.without_footnotes(text) == "They come, from Deva's side,\nwhere she seeks the tide.\n\nEnd."


def test_editors_notes_and_facsimiles_go_as_blocks():
    text = (
        "A poem\nof two lines\n\nNote: 22 latter] latest.\n\n\nNotes:\n43 ye] you\n\n\nMr. Milton\n--------\n\n\nNext\n"
    )
    assert cleaning.without_note_blocks(text) == "A poem\nof two lines\n\n\nNext\n"


def test_a_part_is_cut_at_the_last_heading_of_that_name_since_contents_name_it_first():
    assert cleaning.between("POEMS\npage 3\nPOEMS\nverse\nAPPENDIX.\nrest", "POEMS", "APPENDIX.") == "POEMS\nverse"
    with pytest.raises(ValueError, match="no line 'INDEX'"):
        cleaning.between("POEMS", "INDEX")
