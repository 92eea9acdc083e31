"""LongBench's fourteen English tasks (arXiv 2308.14508): prompts from the published parquet files, from LongBench's own
JSON lines, or from a data set on the Hugging Face hub.

Prompts are worded as the files published with arXiv 2602.16704 word them: as LongBench's config/dataset2prompt.json,
but a code prompt ends with "Next line of code:" and no newline.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refine.data.hub import load_data_set
from refine.data.prompts.prompt import Prompt, answers_in, load_prompts
from refine.errors import DataError, SettingError, nearest
from refine.system.readers import mapping, parsed_json, read_text

_PASSAGES = (
    "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\n"
    "The following are given passages.\n{context}\n\n"
    "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\n"
    "Question: {input}\nAnswer:"
)
_UNANSWERABLE = (
    "nswer the question{based} as concisely as you can, using a single phrase or sentence if possible. If the question "
    'cannot be answered based on the information in the article, write "unanswerable". If the question is a yes/no '
    'question, answer "yes", "no", or "unanswerable". Do not provide any explanation.\n\n'
)


@dataclass(frozen=True)
class LongBenchTask:
    """template: the prompt, with {context} and {input}. answer_tokens: tokens to generate."""

    template: str
    answer_tokens: int


TASKS = {
    "narrativeqa": LongBenchTask(
        "You are given a story, which can be either a novel or a movie script, and a question. Answer the question "
        "asconcisely as you can, using a single phrase if possible. Do not provide any explanation.\n\n"
        "Story: {context}\n\nNow, answer the question based on the story asconcisely as you can, using a single phrase "
        "if possible. Do not provide any explanation.\n\nQuestion: {input}\n\nAnswer:",
        128,
    ),
    "qasper": LongBenchTask(
        "You are given a scientific article and a question. A"
        + _UNANSWERABLE.format(based="")
        + "Article: {context}\n\n A"
        + _UNANSWERABLE.format(based=" based on the above article")
        + "Question: {input}\n\nAnswer:",
        128,
    ),
    "multifieldqa_en": LongBenchTask(
        "Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following question based on the "
        "above text, only give me the answer and do not output any other words.\n\nQuestion: {input}\nAnswer:",
        64,
    ),
    "hotpotqa": LongBenchTask(_PASSAGES, 32),
    "2wikimqa": LongBenchTask(_PASSAGES, 32),
    "musique": LongBenchTask(_PASSAGES, 32),
    "gov_report": LongBenchTask(
        "You are given a report by a government agency. Write a one-page summary of the report.\n\n"
        "Report:\n{context}\n\nNow, write a one-page summary of the report.\n\nSummary:",
        512,
    ),
    "qmsum": LongBenchTask(
        "You are given a meeting transcript and a query containing a question or instruction. Answer the query in one "
        "or more sentences.\n\nTranscript:\n{context}\n\nNow, answer the query based on the above meeting transcript "
        "in one or more sentences.\n\nQuery: {input}\nAnswer:",
        512,
    ),
    "multi_news": LongBenchTask(
        "You are given several news passages. Write a one-page summary of all news. \n\n"
        "News:\n{context}\n\nNow, write a one-page summary of all the news.\n\nSummary:",
        512,
    ),
    "trec": LongBenchTask(
        "Please determine the type of the question below. Here are some examples of questions.\n\n{context}\n{input}",
        64,
    ),
    "triviaqa": LongBenchTask(
        "Answer the question based on the given passage. Only give me the answer and do not output any other words. "
        "The following are some examples.\n\n{context}\n\n{input}",
        32,
    ),
    "samsum": LongBenchTask(
        "Summarize the dialogue into a few short sentences. The following are some examples.\n\n{context}\n\n{input}",
        128,
    ),
    "lcc": LongBenchTask("Please complete the code given below. \n{context}Next line of code:", 64),
    "repobench-p": LongBenchTask("Please complete the code given below. \n{context}{input}Next line of code:", 64),
}


def load_longbench(
    task: str, source: str | Path, length: int = 16384, revision: str | None = None, samples: int | None = None
) -> list[Prompt]:
    """The prompts of one task, in the file's order.

    source: a folder with `<task>_<length>.parquet` (published form) or `<task>.jsonl` (LongBench's form); or a data set
    on the hub, or a copy of its folder, with a configuration for each task and columns context, input (or question),
    answers.
    length: limit for prompt and answer together [tokens]. The evaluation cuts longer prompts in the middle.
    Raises SettingError for an unknown task; DataError for a missing file or column, a hub that does not answer, a row
    without an answer.
    """
    kind = _known(task)
    folder = Path(source)
    if not folder.is_dir() or (folder / "README.md").is_file():  # README.md lists a data set's configurations
        rows = load_data_set(str(source), task, "test", revision)
        return list(_prompts(rows, task, kind, length, f"{source} ({task})", samples))
    published, own = folder / f"{task}_{length}.parquet", folder / f"{task}.jsonl"
    if published.is_file():
        # answer_tokens of the task: those of a published row may be smaller
        return load_prompts(published, task=task, length=length, answer_tokens=kind.answer_tokens)[:samples]
    if own.is_file():
        return list(_prompts(_json_rows(own), task, kind, length, str(own), samples))
    raise DataError(f"{folder}: holds neither {published.name} nor {own.name}; lengths there: {_lengths(folder, task)}")


def _prompts(
    rows: Iterable[dict[str, Any]], task: str, kind: LongBenchTask, length: int, where: str, samples: int | None
) -> Iterator[Prompt]:
    for number, row in enumerate(rows):
        row = mapping(row, f"{where}: row {number}", "a row of LongBench's")
        if samples is not None and number >= samples:
            return
        asked = row.get("input", row.get("question"))
        if asked is None or "context" not in row or "answers" not in row:
            raise DataError(
                f"{where}: row {number} needs context, input (or question) and answers, has {', '.join(row)}"
            )
        answers = answers_in(row["answers"])
        if not answers:
            raise DataError(f"{where}: row {number} has no answer or an empty one, or one that is not text")
        if not isinstance(row["context"], str) or not isinstance(asked, str):
            raise DataError(f"{where}: row {number} has a context or input that is not text")
        text = kind.template.format(context=row["context"], input=asked)
        yield Prompt(text, answers, task, length, kind.answer_tokens)


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of JSON lines. A byte-order mark and blank lines are skipped, and lines may end with CRLF."""
    for number, line in enumerate(read_text(path, "LongBench's JSON lines").split("\n"), 1):
        if line.strip():
            yield parsed_json(line, f"{path}: line {number} is not JSON")


def _lengths(folder: Path, task: str) -> str:
    found = sorted(path.name for path in folder.glob(f"{task}*"))
    return ", ".join(found) or f"no file of task {task}"


def _known(task: str) -> LongBenchTask:
    if task not in TASKS:
        raise SettingError(f"no LongBench task {task!r}{nearest(task, TASKS)}; there are {', '.join(TASKS)}")
    return TASKS[task]
