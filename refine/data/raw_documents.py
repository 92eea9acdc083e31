"""Read the raw documents of a split, as `refine data fetch` writes them, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from refine.errors import DataError


class Document(NamedTuple):
    """id, text, and the characters of the text before each mark, ascending; None: the split has no marks."""

    id: str
    text: str
    marks: tuple[int, ...] | None = None


def read_documents(path: str | Path) -> Iterator[Document]:
    """Each document of a split. Raises DataError: no file, not parquet, no column id or text, marks outside a text."""
    from refine.data.parquet_files import TEXT, TOKENS, arrow_errors, check_columns, open_parquet

    missing, number = "run `refine data fetch` first", 0
    with open_parquet(path, missing) as file:
        marked = "marks" in file.schema_arrow.names
        check_columns(path, file.schema_arrow, {"id": TEXT, "text": TEXT, **({"marks": TOKENS} if marked else {})})
        batches = file.iter_batches(batch_size=16, columns=["id", "text", *(["marks"] if marked else [])])
        while True:
            with arrow_errors(path, missing):
                batch = next(batches, None)
                columns = {} if batch is None else batch.to_pydict()
            if not columns:
                return
            every = columns.get("marks", [None] * len(columns["id"]))
            for name, text, marks in zip(columns["id"], columns["text"], every, strict=True):
                if name is None or text is None:
                    raise DataError(f"{path}: row {number} has no {'id' if name is None else 'text'}")
                own = tuple(marks or ()) if marked else None
                if outside := [mark for mark in own or () if mark is None or not 0 < mark < len(text)]:
                    raise DataError(f"{path}: row {number} ({name}) has a mark outside its text: {outside[0]}")
                yield Document(name, text, own)
                number += 1


def read_texts(path: str | Path) -> Iterator[str]:
    """The text of each document of a split. Raises as `read_documents`."""
    return (document.text for document in read_documents(path))
