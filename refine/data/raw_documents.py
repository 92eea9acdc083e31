"""Read the raw documents of a split, as `refine data fetch` writes them, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from refine.errors import DataError


def read_documents(path: str | Path) -> Iterator[tuple[str, str]]:
    """(id, text) of each document of a split. Raises DataError: no file, not parquet, no column id or text."""
    from refine.data.parquet_files import TEXT, arrow_errors, check_columns, open_parquet

    missing, number = "run `refine data fetch` first", 0
    with open_parquet(path, missing) as file:
        check_columns(path, file.schema_arrow, {"id": TEXT, "text": TEXT})
        batches = file.iter_batches(batch_size=16, columns=["id", "text"])
        while True:
            with arrow_errors(path, missing):
                batch = next(batches, None)
                columns = {} if batch is None else batch.to_pydict()
            if not columns:
                return
            for name, text in zip(columns["id"], columns["text"], strict=True):
                if name is None or text is None:
                    raise DataError(f"{path}: row {number} has no {'id' if name is None else 'text'}")
                yield name, text
                number += 1


def read_texts(path: str | Path) -> Iterator[str]:
    """The text of each document of a split. Raises as `read_documents`."""
    return (text for _, text in read_documents(path))
