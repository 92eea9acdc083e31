"""Documents in plain text files, on disk or at s3://: a document a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from refine.data import parquet
from refine.data.data_files import WILDCARDS
from refine.errors import DataError

ENDINGS = (".txt", ".md")


def read_text_files(path: str) -> Iterator[tuple[str, str]]:
    """(name, text) of each file of `path` (a file, a folder or a pattern), in the order of the names.

    Of a folder, the files that end in .txt or .md; of a pattern with another ending (`*.rst`), the files that match; a
    file is taken whatever its name. Names begin as `path` does.
    Raises DataError: no file, an empty one, one that is not UTF-8; ServiceError: S3 does not answer or refuses.
    """
    last = PurePosixPath(path)
    own = any(sign in last.name for sign in WILDCARDS) and last.suffix[1:].isalnum()
    file_system, files = parquet.find_files(
        path,
        last.suffix if own else ENDINGS,
        "no text file there; name a file, a folder with .txt or .md files, or a pattern such as books/**/*.txt",
    )
    for name, file in files.items():
        yield name, _decoded(name, parquet.read_bytes(file_system, file))


def _decoded(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}: not UTF-8 text ({error.reason} at byte {error.start}); convert it, or leave it out"
        ) from None
