"""The raw documents of a split, as `refine data fetch` writes them, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from refine.errors import DataError


def read_documents(path: str | Path) -> Iterator[tuple[str, str]]:
    """(id, text) of each document of a split. Raises DataError if the file is missing or not of that form."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: run `refine data fetch` first") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({' '.join(str(error).split())[:160]})") from None
    with file:
        for name in ("id", "text"):
            if name not in file.schema_arrow.names:
                raise DataError(f"{path}: no column {name!r}; it has {', '.join(file.schema_arrow.names)}")
        for batch in file.iter_batches(batch_size=16, columns=["id", "text"]):
            columns = batch.to_pydict()
            yield from zip(columns["id"], columns["text"], strict=True)


def read_texts(path: str | Path) -> Iterator[str]:
    """The texts of a split. Raises as `read_documents`."""
    return (text for _, text in read_documents(path))
