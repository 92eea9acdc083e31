"""Documents as token sequences of one length, for training and for next-token scores.

A document is cut into consecutive pieces of L - 1 tokens, and the bos is put before each piece, as before a prompt. So
a sequence is exactly L tokens, all of one document. The rest of a document that does not fill a piece is dropped; a
document that fills no piece is skipped and counted. With packing, training text loses no token: those rests and short
documents, each with its bos, are put one after another into rows of at most L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refine.data.parquet_files import TOKENS, check_columns, open_parquet, read_parquet
from refine.data.raw_documents import Document, read_documents
from refine.errors import DataError
from refine.settings.data import DocumentsSettings
from refine.system.files import folder_beside
from refine.system.quiet import quiet_datasets

SPLITS = ("train", "validation", "second_domain")
RECALL = "recall"  # a split that may be missing: held-out text with marks
SCHEMA = pa.schema([("tokens", pa.list_(pa.int32())), ("document", pa.string()), ("offset", pa.int64())])
PACKED = SCHEMA.append(pa.field("lengths", pa.list_(pa.int32())))
MARKS = pa.field("marks", pa.list_(pa.int32()))
OPEN_ROWS = 16  # rows filled at the same time, so that most pieces find one with little room to spare
AT_ONCE = 16  # documents tokenised together
ROW_GROUP = 1024  # sequences written at a time


@dataclass(frozen=True)
class Sequence:
    """`tokens` [L] of document `document`, whose piece begins `offset` tokens into the document.

    lengths: only of a packed row (at most L tokens): the number of tokens of each piece in it. `document` and `offset`
    are then those of the first piece. marks: the tokens before each place where the text asks for what it has told.
    """

    tokens: list[int]
    document: str
    offset: int
    lengths: list[int] | None = None
    marks: list[int] = field(default_factory=list)


@dataclass
class Counts:
    """Counts of a split's documents and sequences."""

    documents: int = 0
    skipped: int = 0  # documents shorter than a sequence
    sequences: int = 0  # sequences written
    available: int = 0  # sequences before the cap
    tokens: int = 0  # tokens written


def prepare_token_sequences(
    settings: DocumentsSettings,
    data: Path,
    tokenizer: Any,
    folder: Path,
    report: Callable[[str], None] = lambda line: None,
    report_progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Counts]:
    """Write `folder`/<split>.parquet from `data`/<split>.parquet for each split, all of them or none.

    report: called with a line when a split is done. report_progress: called often, with how far a split is.
    Raises DataError: a split is missing, or none of its documents is long enough.
    """
    counts = {}
    splits = (*SPLITS, RECALL) if (data / f"{RECALL}.parquet").is_file() else SPLITS
    with folder_beside(folder) as beside:
        for split in splits:
            cap = None if split == "train" else settings.validation_sequences
            packing = settings.packing and split in ("train", RECALL)
            raw_file = data / f"{split}.parquet"
            counts[split] = _split(raw_file, tokenizer, settings.sequence_length, cap, packing, beside, report_progress)
            report(f"{split}: {_described(counts[split])}")
    return counts


def _split(
    path: Path,
    tokenizer: Any,
    length: int,
    cap: int | None,
    packing: bool,
    folder: Path,
    report_progress: Callable[[str], None],
) -> Counts:
    counts = Counts()
    documents = _reporting(read_documents(path), path.stem, counts, report_progress)
    found: Iterable[Sequence] = cut_into_sequences(documents, tokenizer, length, counts, short=packing)
    if packing:
        found = _packed(found, length)
    if cap is not None:
        found = _evenly(list(found), cap)
    schema = PACKED if packing else SCHEMA
    _write(found, folder / path.name, counts, schema.append(MARKS) if _marked(path) else schema)
    if not counts.sequences:
        raise DataError(
            f"{path}: none of its {counts.documents} documents has the {length} tokens of a sequence; "
            "set documents.sequence_length lower, or bring longer documents"
        )
    return counts


def _marked(path: Path) -> bool:
    """Whether the raw documents have marks."""
    with open_parquet(path, "run `refine data fetch` first") as file:
        return "marks" in file.schema_arrow.names


def _reporting(
    found: Iterator[Document], split: str, counts: Counts, report_progress: Callable[[str], None]
) -> Iterator[Document]:
    for document in found:
        report_progress(f"{split}: {counts.documents} documents, {counts.available} sequences")
        yield document


def _described(counts: Counts) -> str:
    """The counts in one line."""
    of = f" of {counts.available}" if counts.available > counts.sequences else ""
    skipped = f", {counts.skipped} shorter than a sequence skipped" if counts.skipped else ""
    return f"{counts.sequences}{of} sequences, {counts.tokens:,} tokens, from {counts.documents} documents{skipped}"


def cut_into_sequences(
    documents: Iterable[Document],
    tokenizer: Any,
    length: int,
    counts: Counts | None = None,
    short: bool = False,
) -> Iterator[Sequence]:
    """Sequences of `length` tokens out of documents, in order; with `short`, also the shorter rest of each document.
    Adds to `counts`."""
    counts = Counts() if counts is None else counts
    documents = iter(documents)
    while group := list(islice(documents, AT_ONCE)):
        backend, texts = tokenizer.backend_tokenizer, [document.text for document in group]
        marked = any(document.marks for document in group)
        # encode_batch_fast leaves out the character offsets, which take longer than the tokens
        encode = backend.encode_batch if marked else backend.encode_batch_fast
        for document, encoding in zip(group, encode(texts, add_special_tokens=False), strict=True):
            marks = marked_tokens(document.marks, encoding.offsets) if document.marks else []
            pieces = list(_pieces(document.id, encoding.ids, tokenizer.bos_token_id, length, short, marks))
            counts.documents += 1
            counts.skipped += not pieces
            counts.available += len(pieces)
            yield from pieces


def marked_tokens(marks: Iterable[int], offsets: list[tuple[int, int]]) -> list[int]:
    """The token that holds the character after each of `marks` [characters]; `offsets`: first character of each token,
    and the one after its last."""
    ends = np.maximum.accumulate(np.asarray(offsets, dtype=np.int64).reshape(-1, 2)[:, 1])
    found = np.unique(np.searchsorted(ends, np.asarray(tuple(marks), dtype=np.int64), side="right"))
    return [int(token) for token in found if token < len(ends)]


def _pieces(
    document: str, tokens: list[int], bos: int, length: int, short: bool, marks: list[int]
) -> Iterator[Sequence]:
    step = length - 1
    for offset in range(0, len(tokens) if short else len(tokens) - step + 1, step):
        own = [mark - offset + 1 for mark in marks if offset <= mark < offset + step]  # the bos is read before it too
        yield Sequence([bos, *tokens[offset : offset + step]], document, offset, marks=own)


def _packed(found: Iterable[Sequence], length: int) -> Iterator[Sequence]:
    """Rows of at most `length` tokens. Each piece goes into the fullest open row that has room for it."""
    rows: list[list[Sequence]] = []
    for piece in found:
        fitting = [row for row in rows if _filled(row) + len(piece.tokens) <= length]
        if fitting:
            max(fitting, key=_filled).append(piece)
            continue
        if len(rows) == OPEN_ROWS:
            rows.sort(key=_filled)
            yield _row(rows.pop())
        rows.append([piece])
    yield from map(_row, rows)


def _filled(row: list[Sequence]) -> int:
    return sum(len(piece.tokens) for piece in row)


def _row(pieces: list[Sequence]) -> Sequence:
    tokens = [token for piece in pieces for token in piece.tokens]
    lengths = [len(piece.tokens) for piece in pieces]
    starts = accumulate(lengths, initial=0)
    marks = [start + mark for piece, start in zip(pieces, starts, strict=False) for mark in piece.marks]
    return Sequence(tokens, pieces[0].document, pieces[0].offset, lengths, marks)


def _evenly(found: list[Sequence], cap: int) -> list[Sequence]:
    """At most `cap` sequences, equally many of each document (or all of a short one), spread evenly over it.

    If `cap` is below the number of documents, evenly spread documents give one sequence each.
    """
    by_document: dict[str, list[Sequence]] = {}
    for sequence in found:
        by_document.setdefault(sequence.document, []).append(sequence)
    groups = list(by_document.values())
    if cap < len(groups):
        groups = _spread(groups, cap)
    shares = [0] * len(groups)
    left = min(cap, len(found))
    while left:
        for i, group in enumerate(groups):
            if left and shares[i] < len(group):
                shares[i] += 1
                left -= 1
        if shares == [len(group) for group in groups]:
            break
    return [sequence for group, share in zip(groups, shares, strict=True) for sequence in _spread(group, share)]


def _spread(items: list[Any], count: int) -> list[Any]:
    """`count` of `items`: the middle one of each of `count` equal parts."""
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def _write(found: Iterable[Sequence], path: Path, counts: Counts, schema: pa.Schema) -> None:
    found = iter(found)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(islice(found, ROW_GROUP)):
            rows = {name: [getattr(sequence, name) for sequence in group] for name in schema.names}
            writer.write_table(pa.table(rows, schema=schema))
            counts.sequences += len(group)
            counts.tokens += sum(len(sequence.tokens) for sequence in group)


def token_array(tokens: Any, where: str, vocabulary: int | None = None) -> np.ndarray:
    """`tokens` as int64 [T]: integers from 0 to `vocabulary` - 1. Floats, texts and booleans are not cast.

    Raises DataError, which begins with `where`, for anything else.
    """
    try:
        array = np.asarray(tokens)
    except ValueError:  # lists of different lengths in the list
        array = np.zeros((1, 1))
    if array.ndim == 1 and array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu" or (isinstance(tokens, list) and bool in map(type, tokens)):
        odd = [one for one in tokens if isinstance(one, bool) or not isinstance(one, int)] if array.ndim == 1 else ()
        raise DataError(f"{where}: expected a list of token ids (integers), found {str((*odd, tokens)[0])[:40]!r}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or (vocabulary is not None and high >= vocabulary):
        limit = "0 or more" if vocabulary is None else f"0 to {vocabulary - 1}"
        raise DataError(f"{where}: token {low if low < 0 else high} is not in the vocabulary ({limit})")
    return array.astype(np.int64)


def load_token_sequences(path: str | Path) -> Any:
    """Prepared sequences as a `datasets.Dataset` with columns tokens, document, offset, lengths if packed, and marks if
    the text has them.

    Raises DataError if the file is missing or has other columns.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is missing: run `dvc repro documents`, or `refine prepare documents`")
    from datasets import Dataset

    quiet_datasets()
    table = read_parquet(path, "run `dvc repro documents`, or `refine prepare documents`")
    if missing := [name for name in SCHEMA.names if name not in table.column_names]:
        raise DataError(
            f"{path}: no column {missing[0]!r}; it has {', '.join(table.column_names)}: "
            "prepared sequences have tokens, document and offset"
        )
    lists = [name for name in ("lengths", "marks") if name in table.schema.names]
    check_columns(path, table.schema, dict.fromkeys(("tokens", *lists), TOKENS))
    if table["tokens"].null_count or any(chunk.flatten().null_count for chunk in table["tokens"].chunks):
        raise DataError(f"{path}: column 'tokens' lacks values")
    return Dataset(table)
