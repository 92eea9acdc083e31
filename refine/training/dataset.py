"""Data sets as rows of tokens (columns `tokens` and maybe `marks`, or `text`, or `messages`, or `prompt` and `answers`
or `completion`), and rows as batches.

Shapes: B rows of a batch · T tokens of its longest row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from refine.data.prompts.encoding import encode_with_answer
from refine.data.prompts.trl_rows import encode_completion, encode_messages
from refine.data.token_sequences import token_array
from refine.data.tokenizer import by_our_rule
from refine.errors import DataError, SettingError
from refine.settings.base import validated
from refine.settings.objective import ObjectiveSettings
from refine.training.arguments import RefineArguments
from refine.training.order import STAND_IN, NestedStream, Pass, Stream
from refine.training.pieces import RawRow, alone, checked_marks, cut_into_pieces, packed


@dataclass(frozen=True)
class Row:
    """One row of tokens: one document, or several packed one after another."""

    tokens: np.ndarray  # int64 [sum of lengths]
    lengths: tuple[int, ...]  # tokens of each document
    sequence: int  # index in the data set
    documents: tuple[str, ...]  # names for messages: document id, and offset if known
    prompt: int | None = None  # tokens of the prompt, in a row of prompt and answer
    marks: tuple[int, ...] = ()  # tokens of the row before each place where its text asks for what it has told
    counted: bool = True  # False: the stand-in of a process without a row; no metric counts it


class Rows(torch.utils.data.Dataset[Row]):
    """The rows of a data set. `read(index)` returns a row's tokens, document lengths, document names and marks."""

    with_answers = False  # whether each row is a prompt with its answer
    vocabulary: int | None = None  # of the model; tokens outside it are refused

    marked = False  # whether the data set has marks

    def __init__(self, count: int, read: Callable[[int], RawRow]) -> None:
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Row:
        real = 0 if index == STAND_IN else index
        tokens, lengths, documents, marks = self._read(real)
        tokens = token_array(tokens, f"row {real} ({', '.join(documents)})", self.vocabulary)
        if tokens.size == 0:
            raise DataError(f"row {real} of the training data ({', '.join(documents)}) has no tokens")
        spans = (len(tokens),) if lengths is None else tuple(int(length) for length in lengths)
        if sum(spans) != len(tokens) or min(spans) < 1:
            raise DataError(f"row {real}: the lengths {list(spans)} do not add up to its {len(tokens)} tokens")
        found = checked_marks(marks, spans, f"row {real} ({', '.join(documents)})")
        return Row(tokens, spans, real, documents, None, found, index != STAND_IN)


def token_rows(data: Any, tokenizer: Any = None, max_length: int | None = None, packing: bool = False) -> Rows:
    """The rows of `data`: a datasets.Dataset, or anything with `len` whose rows, by index, are dicts.

    Columns: `tokens` (lists of ints; `lengths` names the documents packed in each row), or `text`, which `tokenizer`
    turns into tokens, or `messages` (a conversation, by its chat template); `document` and `offset` name a row in
    errors; `marks` are places where the text asks for what it has told, as numbers of the row's tokens before them.
    `max_length` [tokens] cuts longer documents into pieces; `packing` fills rows of that length with the pieces of all
    documents.
    Raises DataError: no rows, neither column, text without a tokenizer, marks of a text, a streamed data set.
    """
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise DataError(
            "a streamed data set has no length and no rows by index: take a part of it, as in "
            "datasets.Dataset.from_list(list(stream.take(1000)))"
        )
    if len(data) == 0:
        raise DataError("the data set has no rows")
    columns = list(getattr(data, "column_names", None) or data[0])
    column = next((name for name in ("tokens", "text", "messages") if name in columns), None)
    if column is None:
        raise DataError(
            f"the data set has the columns {', '.join(columns)}: expected `tokens` or `text` or `messages`, or "
            "`prompt` beside `answers` or `completion`"
        )
    if column != "tokens" and tokenizer is None:
        raise DataError(f"the data set has a `{column}` column: give processing_class, its tokenizer")
    if packing and max_length is None:
        raise DataError("packing fills rows of max_length tokens: set max_length")

    if "marks" in columns and "tokens" not in columns:
        raise DataError("marks count tokens, and the data set has a `text` column: give `tokens` beside `marks`")

    def read(index: int) -> RawRow:
        row = data[index]
        tokens = _tokens(row[column], column, tokenizer, index)
        return tokens, row.get("lengths"), (_name(row, index),), row.get("marks")

    if max_length is None:
        rows = Rows(len(data), read)
    else:
        pieces = cut_into_pieces((read(index) for index in range(len(data))), max_length)
        found = list(packed(pieces, max_length)) if packing else [alone(piece) for piece in pieces]
        rows = Rows(len(found), found.__getitem__)
    rows.marked = "marks" in columns
    return rows


def _tokens(value: Any, column: str, tokenizer: Any, index: int) -> Any:
    """The tokens of a row from the `value` of its `column`."""
    if column == "tokens":
        return value
    if column == "text":
        return tokenizer(value)["input_ids"]
    try:
        return encode_messages(tokenizer, value)
    except DataError as error:
        raise DataError(f"row {index}: {error}") from None


def _name(row: dict[str, Any], index: int) -> str:
    name = str(row.get("document") or f"row {index}")
    return f"{name}@{row['offset']}" if row.get("offset") is not None else name


class Batches(torch.utils.data.Dataset[dict[str, Any]]):
    """The batch of each Pass over `rows`. Its length is the number of rows."""

    def __init__(self, rows: torch.utils.data.Dataset[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)  # type: ignore[arg-type]

    def __getitem__(self, index: Pass) -> dict[str, Any]:
        return collate([self.rows[row] for row in index.rows], index.kind)


def collate(rows: Sequence[Row], kind: str = "tokens") -> dict[str, Any]:
    """A batch of `rows`. `kind` is what a step trains of each: "tokens" (all), "prompts" (the prompt alone), or
    "answers" (the answer given the prompt).

    Returns `tokens` int64 [B, T], padded on the right with 0; `lengths`, the tokens of each document of each row, or
    None if every row is one document of T tokens; `marks` of each row, or None if no row has any; `prompts`, the tokens
    of each row's prompt (kind "answers"); `sequences`, `documents` and `counted` of the rows; `kind`.
    """
    texts = [row.tokens[: row.prompt] if kind == "prompts" else row.tokens for row in rows]
    marks = [[mark for mark in row.marks if mark < len(text)] for text, row in zip(texts, rows, strict=True)]
    lengths = [[len(text)] if kind == "prompts" else list(row.lengths) for text, row in zip(texts, rows, strict=True)]
    longest = max(map(len, texts))
    tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
    for place, text in enumerate(texts):
        tokens[place, : len(text)] = torch.from_numpy(text)
    return {
        "tokens": tokens,
        "lengths": None if all(row == [longest] for row in lengths) else lengths,
        "marks": marks if any(marks) else None,
        "prompts": [row.prompt for row in rows] if kind == "answers" else None,
        "sequences": [row.sequence for row in rows],
        "documents": [", ".join(row.documents) for row in rows],
        "counted": rows[0].counted,
        "kind": kind,
    }


class PromptRows(Rows):
    """Rows of `data` with columns `prompt` and `answers` (a list of accepted answers, or one string) and maybe `task`,
    as in `refine.data.prompts.encoding.encode_with_answer`. `max_length`: tokens of prompt and answer together. The
    mark of a row is where its answer begins."""

    with_answers = marked = True

    def __init__(self, data: Any, tokenizer: Any, max_length: int | None) -> None:
        if tokenizer is None:
            raise DataError("the data set has prompts: give processing_class, their tokenizer")
        self.data, self.tokenizer, self.max_length = data, tokenizer, max_length

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Row:
        real = 0 if index == STAND_IN else index
        try:
            prompt, answer = self._encode(self.data[real])
        except DataError as error:
            raise DataError(f"row {real}: {error}") from None
        tokens = np.asarray([*prompt, *answer], dtype=np.int64)
        counted, marks = index != STAND_IN, (len(prompt),) if prompt and answer else ()
        return Row(tokens, (len(tokens),), real, (f"prompt {real}",), len(prompt), marks, counted)

    def _encode(self, row: dict[str, Any]) -> tuple[list[int], list[int]]:
        return encode_with_answer(self.tokenizer, row["prompt"], row["answers"], row.get("task"), self.max_length)


class CompletionRows(PromptRows):
    """Rows of `data` with columns `prompt` and `completion`, as TRL has them (`refine.data.prompts.trl_rows`)."""

    def _encode(self, row: dict[str, Any]) -> tuple[list[int], list[int]]:
        return encode_completion(self.tokenizer, row["prompt"], row["completion"], self.max_length)


def rows_of(data: Any, tokenizer: Any, args: RefineArguments, vocabulary: int | None = None) -> Rows:
    """The rows of `data`, whatever its columns. `vocabulary`: of the model; a row with another token is refused when it
    is read. Raises DataError if the columns are not those named above."""
    if isinstance(data, Rows):
        return data
    rows = _rows(data, tokenizer, args)
    rows.vocabulary = vocabulary
    return rows


def _rows(data: Any, tokenizer: Any, args: RefineArguments) -> Rows:
    columns = getattr(data, "column_names", None) or (data[0] if hasattr(data, "__getitem__") and len(data) else ())
    if "prompt" in columns and "answers" in columns:
        return PromptRows(data, _ruled(tokenizer), args.max_length)
    if "prompt" in columns and "completion" in columns:
        return CompletionRows(data, _ruled(tokenizer), args.max_length)
    if "tokens" not in columns:
        tokenizer = _ruled(tokenizer)
    return token_rows(data, tokenizer, args.max_length, args.packing)


def _ruled(tokenizer: Any) -> Any:
    return None if tokenizer is None else by_our_rule(tokenizer, "processing_class")


def stream_of(rows: Rows, args: RefineArguments) -> Stream | NestedStream:
    """The order of `rows` for max_steps steps, or for num_train_epochs epochs if max_steps is not given.

    In nested post-training max_steps counts batches: each has prompt_steps steps on prompts and one on answers. With
    selection `marked` the former read the answers too, because the mark is where an answer begins.
    Raises SettingError: prompt_steps without prompts, or more of them than a batch has samples.
    """
    processes = max(args.world_size, 1)
    per_step = args.sequences_per_step or (
        args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    )
    if args.max_steps >= 0:
        sequences = args.max_steps * per_step
    else:
        sequences = math.ceil(len(rows) * args.num_train_epochs)
    seed = args.data_seed if args.data_seed is not None else args.seed
    order = None if args.train_sampling_strategy == "sequential" else seed
    stream = Stream(len(rows), sequences, per_step, order, "answers" if rows.with_answers else "tokens")
    if not args.prompt_steps:
        return stream
    if not rows.with_answers:
        raise SettingError("prompt_steps needs data with the columns prompt and answers")
    if args.prompt_steps > per_step:
        raise SettingError(
            f"prompt_steps {args.prompt_steps} divides a batch of {per_step} samples: use at most that many"
        )
    objective = validated(ObjectiveSettings, args.objective, "RefineArguments.objective")
    at_answers = objective.uses_positions and objective.selection == "marked"
    return NestedStream(stream, args.prompt_steps, "tokens" if at_answers else "prompts")
