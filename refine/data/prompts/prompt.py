"""One schema for all prompts (needles, questions over documents, LongBench), and what test prompts must not draw.

Columns: `prompt` (str), `answers` (list[str], all accepted; training uses answers[0]), `task` (str), `length` (int,
target for prompt and answer together in tokens), `answer_tokens` (int, tokens to generate). More columns are allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import pyarrow as pa
import pyarrow.parquet as pq

from refine.data.parquet_files import arrow_errors, read_parquet
from refine.errors import DataError, reason
from refine.system.files import file_beside

TOKENS = 10**8  # the longest prompt that is not a mistake
# Column name in published files -> column name here.
PUBLISHED_NAMES = {"answer": "answers", "max_gen_tokens": "answer_tokens", "max_seq_length": "length"}
SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("task", pa.string()),
        ("length", pa.int32()),
        ("answer_tokens", pa.int32()),
        ("prompt_tokens", pa.int32()),
        ("depths", pa.list_(pa.float64())),
    ]
)


@dataclass(frozen=True)
class Prompt:
    """A text for a model to continue with an answer.

    length: target for prompt and answer together [tokens]. answer_tokens: tokens to generate. prompt_tokens: length of
    the prompt in tokens of the tokenizer it was made for (None: unknown). depths: the place of each answer's needle
    [% of the context].
    """

    prompt: str
    answers: tuple[str, ...]
    task: str
    length: int
    answer_tokens: int
    prompt_tokens: int | None = None
    depths: tuple[float, ...] = field(default=())


def answers_in(value: Any) -> tuple[str, ...]:
    """The accepted answers of a row: its `answers` are a list of texts, or one text. Empty if they are neither, or if
    one of them is empty."""
    answers = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
    return answers if all(isinstance(answer, str) and answer for answer in answers) else ()


def write_prompts(prompts: Sequence[Prompt], path: str | Path) -> Path:
    """Write `prompts` to one parquet file, whole or not at all. The same prompts give the same bytes.

    Raises DataError if there are no prompts.
    """
    if not prompts:
        raise DataError(f"{path}: no prompts to write")
    path = Path(path)
    rows = [{name: _plain(getattr(prompt, name)) for name in SCHEMA.names} for prompt in prompts]
    with file_beside(path) as beside:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), beside, compression="zstd")
    return path


def load_prompts(
    path: str | Path, *, task: str | None = None, length: int | None = None, answer_tokens: int | None = None
) -> list[Prompt]:
    """The prompts of a parquet file, in this project's columns or in those published with arXiv 2602.16704.

    `task`, `length` and `answer_tokens` are used where the file has none; a length at the end of the file's name
    (``lcc_16384.parquet``) too. Raises DataError that names file and row: no such file, not parquet, a missing column,
    an empty prompt, no answers, an empty answer.
    """
    path = Path(path)
    table = _read(path)
    named = re.search(r"_(\d+)$", path.stem)
    given = {"task": task, "length": length or (int(named[1]) if named else None), "answer_tokens": answer_tokens}
    columns = set(table.column_names)
    for name in ("prompt", "answers", "task", "length", "answer_tokens"):
        if name not in columns and given.get(name) is None:
            raise DataError(
                f"{path}: no column {name!r}; prompts need prompt, answers, task, length and answer_tokens, "
                f"found {', '.join(sorted(columns))}"
            )
    with arrow_errors(path, ""):
        rows = table.to_pylist()
    return [_prompt(row, given, path, number) for number, row in enumerate(rows)]


def _read(path: Path) -> pa.Table:
    table = read_parquet(path, "no such file of prompts; `refine prepare` makes those of the sample")
    if not table.num_rows:
        raise DataError(f"{path}: holds no prompts")
    return table.rename_columns([_own_name(name, table.column_names) for name in table.column_names])


def _own_name(name: str, columns: Iterable[str]) -> str:
    own = PUBLISHED_NAMES.get(name, name)
    return own if own == name or own not in columns else name


def _prompt(row: dict[str, Any], given: dict[str, Any], path: Path, number: int) -> Prompt:
    def value(name: str) -> Any:
        return row[name] if row.get(name) is not None else given.get(name)

    answers = answers_in(row["answers"])
    if not answers:
        raise DataError(
            f"{path}: row {number} has no answer or an empty one; every prompt needs at least one accepted answer"
        )
    if not isinstance(row["prompt"], str) or not row["prompt"]:
        raise DataError(f"{path}: row {number} has an empty prompt")
    if not isinstance(value("task"), str) or not value("task"):
        raise DataError(f"{path}: row {number} has no task, or one that is not text")
    for name in ("length", "answer_tokens"):
        if value(name) is None:
            raise DataError(f"{path}: row {number} has no {name}")
        if not _is_count(value(name)):
            found = reason(repr(value(name)), 40)
            raise DataError(f"{path}: row {number} has {name} {found}; expected a number of tokens from 1 to {TOKENS}")
    prompt_tokens, depths = row.get("prompt_tokens", row.get("prompt_length")), row.get("depths") or ()
    if not (prompt_tokens is None or _is_count(prompt_tokens)) or not _are_numbers(depths):
        raise DataError(f"{path}: row {number} has prompt_tokens or depths that are not numbers")
    return Prompt(
        prompt=row["prompt"],
        answers=answers,
        task=value("task"),
        length=int(value("length")),
        answer_tokens=int(value("answer_tokens")),
        prompt_tokens=prompt_tokens,
        depths=tuple(depths),
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= TOKENS


def _are_numbers(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(isinstance(one, (int, float)) for one in values)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def kept_for_exercises(text: str) -> bool:
    """Whether `text` (a needle's key or value, or an invented name) may only be used in recall exercises.

    A checksum of the text decides, half against half. The shipped models are trained on the exercises, so no test
    prompt draws from that half, whatever its seed: a model cannot have seen in training what a test asks for.
    """
    return crc32(text.encode()) % 2 == 0
