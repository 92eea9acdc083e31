"""Parquet files on disk, that the pipeline wrote or a user names: pyarrow's errors in one line, columns checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from refine.errors import DataError, reason

TEXT = "text"
TOKENS = "lists of whole numbers"


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


KINDS = {
    TEXT: lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
    TOKENS: lambda kind: (
        (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_integer(kind.value_type)
    ),
}


@contextmanager
def arrow_errors(path: str | Path, missing: str) -> Iterator[None]:
    """For a block that reads the parquet file `path`. Raises DataError: no such file (`missing`: what to do then), not
    parquet, damaged, or a column that pyarrow cannot read."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path} is missing: {missing}") from None
    except (pa.lib.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a parquet file ({reason(error, 160)})") from None


def open_parquet(path: str | Path, missing: str) -> pq.ParquetFile:
    """The opened file. Raises as `arrow_errors`."""
    with arrow_errors(path, missing):
        return pq.ParquetFile(path)


def read_parquet(path: str | Path, missing: str) -> pa.Table:
    """The whole table. Raises as `arrow_errors`, and DataError for two columns of one name."""
    with arrow_errors(path, missing), pq.ParquetFile(path) as file:
        return file.read()


def check_columns(path: str | Path, schema: Any, wanted: Mapping[str, str]) -> None:
    """Raises DataError: a column of `wanted` (name -> TEXT or TOKENS) is missing or of another type."""
    for name, kind in wanted.items():
        if schema.names.count(name) != 1:
            what = "two columns" if name in schema.names else "no column"
            raise DataError(f"{path}: {what} {name!r}; it has {', '.join(schema.names)}")
        if not KINDS[kind](schema.field(name).type):
            raise DataError(f"{path}: column {name!r} holds {schema.field(name).type}; expected {kind}")
