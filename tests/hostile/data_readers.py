"""Readers of text, prepared sequences and prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.hostile import mutations as bad
from tests.hostile.reader import Reader
from tests.hostile.samples import TOKENS


def _prompts() -> dict[str, list[Any]]:
    return {
        "prompt": ["The key is 7. The key is", "Name it."], "answers": [["7"], ["x", "y"]],
        "task": ["niah_single_1"] * 2, "length": [64, 64], "answer_tokens": [4, 4], "prompt_tokens": [9, 4],
        "depths": [[50.0], [10.0]],
    }  # fmt: skip


def _sequences() -> dict[str, list[Any]]:
    return {"tokens": [list(range(TOKENS))] * 3, "document": ["a", "b", "c"], "offset": [0, 0, 24]}


LONGBENCH = {"context": "Rain fell. {It} rained.", "input": "What fell?", "answers": ["Rain"], "length": 5, "_id": "7"}

SQUAD = {
    "version": "v2.0",
    "data": [{"title": "T", "paragraphs": [{"context": "Rain fell.", "qas": [
        {"id": "1", "question": "What?", "answers": [{"text": "Rain", "answer_start": 0}], "is_impossible": False}]}]}],
}  # fmt: skip

HOTPOT = [{
    "_id": "1", "question": "What?", "answer": "Rain", "supporting_facts": [["A", 0]],
    "context": [["A", ["Rain fell."]], ["B", ["Sun shone."]]],
}]  # fmt: skip


def _load_sequences(path: Path) -> None:
    from refine.data.token_sequences import load_token_sequences
    from refine.evaluation.next_token import token_rows
    from refine.training.arguments import RefineArguments
    from refine.training.dataset import rows_of

    found = load_token_sequences(path)
    token_rows(found)
    rows = rows_of(found, None, RefineArguments(output_dir="nowhere", use_cpu=True, report_to=[]))
    for number in range(len(rows)):
        rows[number]


def _raw_documents(path: Path) -> None:
    from refine.data.raw_documents import read_documents

    for name, text, _ in read_documents(path):
        assert isinstance(name, str)
        assert isinstance(text, str)


def _load_prompts(path: Path) -> None:
    from refine.data.prompts.prompt import load_prompts
    from refine.evaluation.inputs import find_prompts

    find_prompts(path.parent)
    for prompt in load_prompts(path):
        assert isinstance(prompt.prompt, str)
        assert all(isinstance(one, str) for one in prompt.answers)
        assert all(isinstance(one, int) and one > 0 for one in (prompt.length, prompt.answer_tokens))


def _parquet_source(path: Path) -> None:
    from refine.data.corpus.sources import read_source
    from refine.settings.data import ParquetSource

    for one in read_source(ParquetSource(path=str(path), title_column="title")):
        assert isinstance(one.text, str)


def _essays(path: Path) -> None:
    from refine.data.prompts.essays import read_essays

    assert all(isinstance(text, str) for text in read_essays(path))


def _longbench(path: Path) -> None:
    from refine.data.prompts.longbench import load_longbench

    for prompt in load_longbench("qasper", path.parent, 512):
        assert all(isinstance(answer, str) and answer for answer in prompt.answers)


def _squad(path: Path) -> None:
    from refine.data.prompts.multi_document_qa import read_squad

    _pool(read_squad(path))


def _hotpotqa(path: Path) -> None:
    from refine.data.prompts.multi_document_qa import read_hotpotqa

    _pool(read_hotpotqa(path))


def _pool(found: Any) -> None:
    assert all(isinstance(passage, str) for passage in found.passages)
    for question in found.questions:
        assert isinstance(question.query, str)
        assert all(isinstance(answer, str) for answer in question.answers)


DATA = (
    Reader("prepared sequences", "documents/train.parquet", _sequences, bad.write_parquet, _load_sequences,
           names=("row", "sequence", "data set")),
    Reader("raw documents", "data/train.parquet", lambda: {"id": ["a", "b"], "text": ["x", "y"]}, bad.write_parquet,
           _raw_documents),
    Reader("prompts", "niah_single_1_64.parquet", _prompts, bad.write_parquet, _load_prompts),
    Reader("a parquet source", "source.parquet", lambda: {"text": ["x", "y"], "title": ["a", "b"]}, bad.write_parquet,
           _parquet_source),
    Reader("essays, parquet", "essays.parquet", lambda: {"text": ["x", "y"]}, bad.write_parquet, _essays),
    Reader("essays, text", "essays.txt", lambda: "Rain fell. 🦊\n".encode() * 9, bad.write_bytes, _essays),
    Reader("LongBench's lines", "qasper.jsonl", lambda: [dict(LONGBENCH), dict(LONGBENCH)], bad.write_lines, _longbench,
           names=("qasper",)),
    Reader("SQuAD", "squad.json", lambda: json.loads(json.dumps(SQUAD)), bad.write_json, _squad),
    Reader("HotpotQA", "hotpot.json", lambda: json.loads(json.dumps(HOTPOT)), bad.write_json, _hotpotqa),
)  # fmt: skip
