"""The prose to hide needles in: from a text file, a folder of texts, parquet files, or a data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from refine.data.hub import load_data_set
from refine.data.parquet_files import TEXT, arrow_errors, check_columns, read_parquet
from refine.errors import DataError
from refine.paths import visible_files
from refine.system.readers import read_text

ENDINGS = (".txt", ".md")


def read_essays(source: str | Path, column: str = "text", split: str = "train") -> list[str]:
    """The texts of a .txt or .md file, of a parquet file, of all such files of a folder (sorted), or of a hub data set.

    column: the column with the text in parquet files and data sets. Raises DataError: no such source or column, or no
    text in it.
    """
    path = Path(source)
    if path.is_file():
        texts = list(_of_file(path, column))
    elif path.is_dir():
        files = [file for file in visible_files(path) if file.suffix in (*ENDINGS, ".parquet")]
        texts = [text for file in files for text in _of_file(file, column)]
    else:
        rows = load_data_set(str(source), None, split)
        if column not in rows.column_names:
            raise DataError(f"{source}: no column {column!r}; there are {', '.join(rows.column_names)}")
        texts = list(rows[column])
    texts = [text for text in texts if text and text.strip()]
    if not texts:
        raise DataError(
            f"{source}: no text in it; essays are {', '.join(ENDINGS)} or parquet files with column {column!r}"
        )
    return texts


def _of_file(path: Path, column: str) -> Iterator[str]:
    if path.suffix != ".parquet":
        yield read_text(path, "an essay")
        return
    table = read_parquet(path, "name a file or folder of essays")
    check_columns(path, table.schema, {column: TEXT})
    with arrow_errors(path, "name a file or folder of essays"):
        texts = table[column].to_pylist()
    yield from texts
