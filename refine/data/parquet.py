"""Parquet on disk or in S3, streamed even if the server fails, is slow or does not answer for a minute.

A server that does not answer the first request is an error at once (after CONNECT or ANSWER). One that stops answering
later is asked again, with growing pauses, for `retries.PATIENCE`. Each row comes once, in order, after any failure.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from refine.data.data_files import data_files, split_pattern
from refine.errors import DataError, ServiceError, reason, without_secrets
from refine.system.retries import Waiting, patiently

CONNECT = 4.0  # to open a connection [s]
ANSWER = 9.0  # of silence on an open connection [s]; with CONNECT below 15 s, so that a user soon sees the error
ROWS = 16  # rows decoded at a time: documents are long
BLOCK = 8 * 2**20  # in one request to S3 [bytes]

# s3fs turns the answers 500, 502, 503 and 504 into these
BUSY = {errno.EBUSY, errno.EIO, getattr(errno, "EREMOTEIO", errno.EIO)}


def find_parquet_files(path: str) -> tuple[Any, dict[str, str]]:
    """The file system of `path` (a file, a folder or a pattern) and its parquet files, sorted, as {name: place}.

    Names begin as `path` does, so that they are the same on every machine. Hidden files and those that Spark and others
    put beside the data are left out (`refine.data.data_files`).
    Raises DataError if there are none or one is empty, ServiceError if S3 does not answer or refuses.
    """
    return find_files(
        path, ".parquet", "no parquet file there; name a file, a folder or a pattern such as folder/*.parquet"
    )


def find_files(path: str, ending: str | tuple[str, ...], missing: str) -> tuple[Any, dict[str, str]]:
    """As `find_parquet_files`, for files of any `ending`. missing: what to say if there are none."""
    file_system, inside = _file_system(path)
    with one_line_errors_of(path):
        start, pattern = split_pattern(file_system, inside)
        found = data_files(file_system, start, pattern, ending)
    if not found:
        raise DataError(f"{path}: {missing} (names that begin with . or _ do not count)")
    before = path[: len(path) - len(pattern)] if pattern else path.rstrip("/")
    return file_system, {before + file.removeprefix(start + "/" * bool(pattern)): file for file in found}


def _file_system(path: str) -> tuple[Any, str]:
    import fsspec

    if not path.startswith("s3://"):
        with one_line_errors_of(path):
            return fsspec.core.url_to_fs(path)
    _without_keys(path, path)
    return s3_file_system(), path.removeprefix("s3://")


def ask_bucket(address: str, shown: str, endpoint_url: str | None = None) -> None:
    """Send one request to the bucket of an s3:// `address`, called `shown` in errors.

    Raises ServiceError, within 15 s: the store does not answer, or refuses. Raises DataError: no such bucket, or the
    address holds keys.
    """
    _without_keys(address, shown)
    with one_line_errors_of(shown):
        file_system = s3_file_system(endpoint_url=endpoint_url)
        file_system.call_s3("head_bucket", Bucket=address.removeprefix("s3://").split("/")[0])


def _without_keys(address: str, shown: str) -> None:
    """Raises DataError if an s3:// address holds keys: they would be written wherever the address is."""
    if without_secrets(address) != address:
        raise DataError(
            f"{without_secrets(shown)}: the address holds credentials; put them into AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or a profile, and leave them out of the address"
        )


def s3_file_system(endpoint_url: str | None = None) -> Any:
    """S3 with short time limits and without botocore's retries: this module retries, and logs it.

    endpoint_url: None means AWS_ENDPOINT_URL_S3, as for botocore.
    """
    import s3fs

    file_system = s3fs.S3FileSystem(
        endpoint_url=endpoint_url,
        config_kwargs={"connect_timeout": CONNECT, "read_timeout": ANSWER, "retries": {"total_max_attempts": 1}},
        use_listings_cache=False,
        skip_instance_cache=True,
        default_block_size=BLOCK,
    )
    file_system.retries = 1
    return file_system


def columns_of(file_system: Any, file: str) -> dict[str, str]:
    """The columns of a parquet file, as {name: type}. Raises DataError if it is no parquet file."""
    import pyarrow.parquet as pq

    def read() -> dict[str, str]:
        with file_system.open(file, "rb") as opened:
            return {field.name: str(field.type) for field in pq.ParquetFile(opened).schema_arrow}

    with one_line_errors_of(file):
        return patiently(read, _may_pass, file)


def read_rows(file_system: Any, file: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, `columns` only, in order. Raises as `one_line_errors_of`, after PATIENCE."""
    done = 0
    waiting = Waiting(file)
    state = _state(file_system, file)
    while True:
        try:
            with one_line_errors_of(file, unless=_may_pass):
                for row in _rows_from(file_system, file, columns, done):
                    yield row
                    done += 1
                    waiting.progressed()
                return
        except Exception as error:
            if not _may_pass(error):
                raise
            with one_line_errors_of(file):
                waiting.pause(error)
        if _state(file_system, file) != state:
            raise DataError(f"{file}: was replaced while it was read; run the command again")


def read_bytes(file_system: Any, file: str) -> bytes:
    """The content of a file. Raises as `one_line_errors_of`, after PATIENCE."""

    def read() -> bytes:
        with file_system.open(file, "rb") as opened:
            return opened.read()

    with one_line_errors_of(file):
        return patiently(read, _may_pass, file)


def _rows_from(file_system: Any, file: str, columns: list[str], start: int) -> Iterator[dict[str, Any]]:
    """Rows from number `start` on. Earlier row groups are not read."""
    import pyarrow.parquet as pq

    with file_system.open(file, "rb") as opened:
        parquet = pq.ParquetFile(opened, pre_buffer=False)
        sizes = [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]
        first = 0
        while first < len(sizes) and start >= sizes[first]:
            start -= sizes[first]
            first += 1
        groups = list(range(first, len(sizes)))
        for batch in parquet.iter_batches(batch_size=ROWS, row_groups=groups, columns=columns):
            yield from batch.slice(min(start, len(batch))).to_pylist()
            start = max(start - len(batch), 0)


def _state(file_system: Any, file: str) -> Any:
    """The ETag of a file in S3, which changes when the file is replaced. None for a local file, which is read once."""
    if "s3" not in file_system.protocol:
        return None
    with one_line_errors_of(file):
        return patiently(lambda: file_system.info(file, refresh=True).get("ETag"), _may_pass, file)


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later: the server does not answer, is slow or is overloaded."""
    from aiohttp import ClientError as TransportError
    from botocore.exceptions import ConnectionError as BotoConnectionError
    from botocore.exceptions import HTTPClientError

    if isinstance(error, OSError) and error.filename is not None:
        return False  # a local file
    no_answer = isinstance(
        error, HTTPClientError | BotoConnectionError | TransportError | ConnectionError | TimeoutError
    )
    return no_answer or (isinstance(error, OSError) and error.errno in BUSY)


@contextmanager
def one_line_errors_of(path: str, unless: Callable[[Exception], bool] = lambda error: False) -> Iterator[None]:
    """Turns the errors of reading `path` into a DataError or ServiceError of one line, but not those `unless` picks."""
    try:
        yield
    except (DataError, ServiceError, GeneratorExit):
        raise
    except Exception as error:
        if unless(error):
            raise
        raise _one_line_error(path, error) from None


def _one_line_error(address: str, error: Exception) -> DataError | ServiceError:
    import pyarrow as pa

    path = without_secrets(address)

    if isinstance(error, pa.ArrowInvalid):
        return DataError(f"{path}: not a parquet file ({_with_class(error, address)})")
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such file, folder or bucket")
    name = type(error).__name__
    if name in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return ServiceError(
            f"{path}: no credentials for S3; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        )
    if isinstance(error, PermissionError):
        return ServiceError(f"{path}: access refused; check the credentials' rights and the path")
    if _may_pass(error):
        return ServiceError(
            f"{path}: the server does not answer ({_with_class(error, address)}); check AWS_ENDPOINT_URL_S3 and network"
        )
    if isinstance(error, OSError):
        return DataError(f"{path}: cannot be read ({_with_class(error, address)})")
    if name == "ParamValidationError" or isinstance(error, ValueError) or (name == "ImportError" and "://" in address):
        return DataError(f"{path}: not an address that can be read ({_with_class(error, address)})")
    raise error


def _with_class(error: Exception, address: str) -> str:
    return f"{type(error).__name__}: {reason(without_secrets(str(error), address) or type(error).__name__)}"
