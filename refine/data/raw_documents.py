"""Read the raw documents of a split, as `refine data fetch` writes them, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from refine.errors import DataError, reason


def read_documents(path: str | Path) -> Iterator[tuple[str, str]]:
    """(id, text) of each document of a split. Raises DataError: no file, not parquet, no column id or text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: run `refine data fetch` first") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({reason(error, 160)})") from None
    with file:
        for name in ("id", "text"):
            if name not in file.schema_arrow.names:
                raise DataError(f"{path}: no column {name!r}; it has {', '.join(file.schema_arrow.names)}")
        for batch in file.iter_batches(batch_size=16, columns=["id", "text"]):
            columns = batch.to_pydict()
            yield from zip(columns["id"], columns["text"], strict=True)


def read_texts(path: str | Path) -> Iterator[str]:
    """The text of each document of a split. Raises as `read_documents`."""
    return (text for _, text in read_documents(path))
