"""Any data set with a `tokens` or a `text` column as rows of tokens, and rows as batches.

Shapes: B rows of a batch · T the longest row's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from refine.data.prompts.encoding import cut_middle, reference_tokens
from refine.data.prompts.tasks import known_task
from refine.errors import DataError, SettingError
from refine.training.arguments import RefineArguments
from refine.training.order import STAND_IN, NestedStream, Pass, Stream


@dataclass(frozen=True)
class Row:
    """One row of tokens: documents one after another, and where they come from."""

    tokens: np.ndarray  # int64 [sum of lengths]
    lengths: tuple[int, ...]  # tokens of each document packed in the row
    sequence: int  # index in the data set
    documents: tuple[str, ...]  # names for messages: document id, and offset where there is one
    prompt: int | None = None  # of a prompt with its answer: tokens of the prompt
    counted: bool = True  # False: read by a process that has no row left, and counts for nothing


class Sequences(torch.utils.data.Dataset[Row]):
    """The rows of a data set. `read(index)` gives tokens, document lengths and document names of one."""

    exchanges = False  # whether rows are prompts with answers

    def __init__(self, count: int, read: Callable[[int], tuple[Any, Sequence[int] | None, tuple[str, ...]]]) -> None:
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Row:
        real = 0 if index == STAND_IN else index
        tokens, lengths, documents = self._read(real)
        tokens = np.asarray(tokens, dtype=np.int64)
        if tokens.size == 0:
            raise DataError(f"row {real} of the training data ({', '.join(documents)}) has no tokens")
        spans = (len(tokens),) if lengths is None else tuple(int(length) for length in lengths)
        if sum(spans) != len(tokens) or min(spans) < 1:
            raise DataError(f"row {real}: the lengths {list(spans)} do not add up to its {len(tokens)} tokens")
        return Row(tokens, spans, real, documents, counted=index != STAND_IN)


def sequences_of(data: Any, tokenizer: Any = None, max_length: int | None = None, packing: bool = False) -> Sequences:
    """The rows of `data`: a datasets.Dataset, or anything with `len` and rows by index that are dicts.

    Columns: `tokens` (lists of ints; with `lengths`, the documents packed in each row), or `text`, which `tokenizer`
    turns into tokens; `document` and `offset` name a row in messages. `max_length` [tokens] cuts longer documents
    into pieces; with `packing` the pieces of all documents are laid one after another into rows of that length.
    Raises DataError: no rows, neither column, text without a tokenizer, a streamed data set.
    """
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise DataError("a streamed data set has no length and no rows by index: take a part of it, as in "
                        "datasets.Dataset.from_list(list(stream.take(1000)))")  # fmt: skip
    if len(data) == 0:
        raise DataError("the data set has no rows")
    columns = list(getattr(data, "column_names", None) or data[0])
    if "tokens" not in columns and "text" not in columns:
        raise DataError(f"the data set has the columns {', '.join(columns)}: expected `tokens` or `text`")
    if "tokens" not in columns and tokenizer is None:
        raise DataError("the data set has a `text` column: give processing_class, the tokenizer that reads it")
    if packing and max_length is None:
        raise DataError("packing lays documents into rows of max_length tokens: set max_length")

    def read(index: int) -> tuple[Any, Sequence[int] | None, tuple[str, ...]]:
        row = data[index]
        tokens = row["tokens"] if "tokens" in columns else tokenizer(row["text"])["input_ids"]
        return tokens, row.get("lengths"), (_name(row, index),)

    if max_length is None:
        return Sequences(len(data), read)
    pieces = _pieces((read(index) for index in range(len(data))), max_length)
    rows = list(_packed(pieces, max_length)) if packing else [(tokens, None, (name,)) for tokens, name in pieces]
    return Sequences(len(rows), rows.__getitem__)


def _name(row: dict[str, Any], index: int) -> str:
    name = str(row.get("document") or f"row {index}")
    return f"{name}@{row['offset']}" if row.get("offset") is not None else name


def _pieces(documents: Iterable[tuple[Any, Any, tuple[str, ...]]], length: int) -> Iterator[tuple[np.ndarray, str]]:
    """Each document in pieces of at most `length` tokens; of a packed row, each of its documents."""
    for tokens, lengths, (name,) in documents:
        array = np.asarray(tokens, dtype=np.int64)
        start = 0
        for span in lengths or [len(array)]:
            for offset in range(start, start + span, length):
                yield array[offset : min(offset + length, start + span)], f"{name}+{offset}" if offset else name
            start += span


def _packed(
    pieces: Iterable[tuple[np.ndarray, str]], length: int
) -> Iterator[tuple[np.ndarray, list[int], tuple[str, ...]]]:
    """Rows of at most `length` tokens, filled with whole pieces in their order."""
    held: list[tuple[np.ndarray, str]] = []
    for piece, name in pieces:
        if held and sum(len(tokens) for tokens, _ in held) + len(piece) > length:
            yield _row(held)
            held = []
        held.append((piece, name))
    if held:
        yield _row(held)


def _row(held: list[tuple[np.ndarray, str]]) -> tuple[np.ndarray, list[int], tuple[str, ...]]:
    pieces, names = zip(*held, strict=True)
    return np.concatenate(pieces), [len(piece) for piece in pieces], names


class Batches(torch.utils.data.Dataset[dict[str, Any]]):
    """The batch of each Pass over `rows`; its length is theirs."""

    def __init__(self, rows: torch.utils.data.Dataset[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)  # type: ignore[arg-type]

    def __getitem__(self, one: Pass) -> dict[str, Any]:
        return collate([self.rows[row] for row in one.rows], one.kind)


def collate(rows: Sequence[Row], kind: str = "tokens") -> dict[str, Any]:
    """A batch of what is trained of each row: all of its "tokens", its "prompts" alone, or "answers" given the prompt.

    `tokens` int64 [B, T] padded on the right with 0; `lengths`, the documents' tokens in each row, or None where every
    row is one document of T tokens; `prompts`, tokens of each row's prompt (of "answers"); `sequences`, `documents` and
    `counted` of the rows; `kind`.
    """
    texts = [row.tokens[: row.prompt] if kind == "prompts" else row.tokens for row in rows]
    lengths = [[len(text)] if kind == "prompts" else list(row.lengths) for text, row in zip(texts, rows, strict=True)]
    longest = max(map(len, texts))
    tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
    for place, text in enumerate(texts):
        tokens[place, : len(text)] = torch.from_numpy(text)
    return {
        "tokens": tokens,
        "lengths": None if all(row == [longest] for row in lengths) else lengths,
        "prompts": [row.prompt for row in rows] if kind == "answers" else None,
        "sequences": [row.sequence for row in rows],
        "documents": [", ".join(row.documents) for row in rows],
        "counted": rows[0].counted,
        "kind": kind,
    }


class Exchanges(Sequences):
    """Rows of `data` with columns `prompt` and `answers` (all accepted ones, or a lone string; the first is trained,
    or, where `task` is one that expects them all, all). `max_length`: tokens of prompt and answer together."""

    exchanges = True

    def __init__(self, data: Any, tokenizer: Any, max_length: int | None) -> None:
        if tokenizer is None:
            raise DataError("the data set has prompts: give processing_class, the tokenizer that reads them")
        self.data, self.tokenizer, self.max_length = data, tokenizer, max_length

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Row:
        real = 0 if index == STAND_IN else index
        prompt, answer = self._encoded(real)
        tokens = np.asarray([*prompt, *answer], dtype=np.int64)
        return Row(tokens, (len(tokens),), real, (f"prompt {real}",), len(prompt), counted=index != STAND_IN)

    def _encoded(self, index: int) -> tuple[list[int], list[int]]:
        """Tokens of prompt and answer. Raises DataError naming the row where one is empty."""
        row = self.data[index]
        answers = [row["answers"]] if isinstance(row["answers"], str) else row["answers"]
        if not row["prompt"] or not answers or not all(isinstance(one, str) and one for one in answers):
            raise DataError(f"row {index}: expected a prompt, and in `answers` one text or a list of them, none empty")
        prompt = list(self.tokenizer(row["prompt"])["input_ids"])
        task = known_task(row["task"]) if row.get("task") else None
        answer = answers[0] if task is None else task.reference(answers)
        between = " " if task is None else task.before_answer
        tokens = list(reference_tokens(self.tokenizer, row["prompt"], prompt, answer, between))
        if (end := self.tokenizer.eos_token_id) is not None:
            tokens.append(end)
        if self.max_length is not None:
            if len(tokens) >= self.max_length:
                raise DataError(
                    f"row {index}: its answer alone has {len(tokens)} of max_length {self.max_length} tokens"
                )
            prompt = cut_middle(prompt, self.max_length - len(tokens))
        return prompt, tokens


def rows_of(data: Any, tokenizer: Any, args: RefineArguments) -> Sequences:
    """Rows of `data`: prompts with answers, or tokens, or text. Raises DataError where it is none of these."""
    if isinstance(data, Sequences):
        return data
    columns = getattr(data, "column_names", None) or (data[0] if hasattr(data, "__getitem__") and len(data) else ())
    if "prompt" in columns and "answers" in columns:
        return Exchanges(data, tokenizer, args.max_length)
    return sequences_of(data, tokenizer, args.max_length, args.packing)


def stream_of(rows: Sequences, args: RefineArguments) -> Stream | NestedStream:
    """The order for max_steps steps, or for num_train_epochs epochs where max_steps is not given.

    Nested post-training counts max_steps in batches: each has prompt_steps steps on prompts and one on answers.
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
    stream = Stream(len(rows), sequences, per_step, order, "answers" if rows.exchanges else "tokens")
    if not args.prompt_steps:
        return stream
    if not rows.exchanges:
        raise SettingError("prompt_steps is for data with the columns prompt and answers")
    if args.prompt_steps > per_step:
        raise SettingError(
            f"prompt_steps {args.prompt_steps} share out a batch of {per_step} samples: at most that many"
        )
    return NestedStream(stream, args.prompt_steps)
