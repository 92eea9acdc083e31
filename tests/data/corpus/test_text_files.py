"""Text files as a source: a document a file, from a file, a folder, a pattern or S3; each mistake is one line."""

from __future__ import annotations

import pytest

from refine.data.corpus.sources import read_source
from refine.errors import DataError
from refine.settings.data import TextSource


@pytest.fixture
def books(tmp_path, monkeypatch):
    """A folder of text files, seen from its parent."""
    monkeypatch.chdir(tmp_path)
    files = {"b.txt": "second", "a.md": "# first", "sub/c.txt": "third é", "notes.rst": "other", "._b.txt": "macOS"}
    for name, text in files.items():
        (tmp_path / "books" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "books" / name).write_bytes(text.encode())
    (tmp_path / "books" / "marked.txt").write_bytes(b"\xef\xbb\xbfmark")
    return tmp_path / "books"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("books", ["books/a.md", "books/b.txt", "books/marked.txt", "books/sub/c.txt"]),
        ("books/*.txt", ["books/b.txt", "books/marked.txt"]),
        ("books/**/c*", ["books/sub/c.txt"]),
        ("books/*.rst", ["books/notes.rst"]),
        ("books/notes.rst", ["books/notes.rst"]),
        ("books/sub", ["books/sub/c.txt"]),
    ],
)
def test_each_file_is_a_document_named_by_its_path(books, path, expected):
    found = list(read_source(TextSource(path=path)))
    assert [d.id for d in found] == [d.work for d in found] == expected
    assert {d.source for d in found} == {path}


def test_texts_are_whole_and_without_a_byte_order_mark(books):
    texts = {d.id: d.text for d in read_source(TextSource(path="books"))}
    assert texts["books/sub/c.txt"] == "third é" and texts["books/marked.txt"] == "mark"


def test_short_files_are_skipped_and_at_most_documents_are_taken(books):
    found = read_source(TextSource(path="books", min_characters=6, skip=1, documents=1))
    assert [d.text for d in found] == ["second"]
    with pytest.raises(DataError, match="books: none of 4 files is taken: min_characters is 99, skip is 0"):
        list(read_source(TextSource(path="books", min_characters=99)))


def test_a_folder_with_a_dot_or_brackets_in_its_name_is_a_folder(books, tmp_path):
    for name in ("v1.2", "texts [new]"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "one.txt").write_text("one")
        assert [d.text for d in read_source(TextSource(path=name))] == ["one"]


def test_what_is_no_text_is_named(books):
    with pytest.raises(DataError, match=r"nowhere: no text file there; name a file, a folder with \.txt or \.md files"):
        list(read_source(TextSource(path="nowhere")))
    (books / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(DataError, match=r"books/latin\.txt: not UTF-8 text \(.* at byte 0\); convert it"):
        list(read_source(TextSource(path="books")))
    (books / "empty.txt").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.txt: an empty file"):
        list(read_source(TextSource(path="books")))
