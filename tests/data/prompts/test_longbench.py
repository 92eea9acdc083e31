"""LongBench's prompts: the published files, LongBench's own JSON lines, and data sets with a configuration a task."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refine.data.prompts.longbench import TASKS, load_longbench
from refine.errors import DataError, ServiceError, SettingError

ROW = {
    "context": "Rain fell. {It} rained.",
    "input": "What fell?",
    "answers": ["Rain", "rain"],
    "length": 5,
    "_id": "7",
}


@pytest.fixture
def jsonl(tmp_path):
    def write(task="qasper", rows=(ROW,)):
        (tmp_path / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path

    return write


def test_the_fourteen_tasks_generate_their_own_number_of_tokens():
    tokens = {task: kind.answer_tokens for task, kind in TASKS.items()}
    assert tokens == {
        "narrativeqa": 128,
        "qasper": 128,
        "multifieldqa_en": 64,
        "hotpotqa": 32,
        "2wikimqa": 32,
        "musique": 32,
        "gov_report": 512,
        "qmsum": 512,
        "multi_news": 512,
        "trec": 64,
        "triviaqa": 32,
        "samsum": 128,
        "lcc": 64,
        "repobench-p": 64,
    }


@pytest.mark.requires_shared
@pytest.mark.parametrize("task", ["lcc", "qasper", "samsum", "trec"])
def test_published_files_load_as_they_are_and_our_wording_is_theirs(task, shared_data):
    rows = pq.read_table(shared_data / "longbench" / f"{task}_16384.parquet").to_pylist()
    prompts = load_longbench(task, shared_data / "longbench")
    assert [p.prompt for p in prompts] == [row["prompt"] for row in rows]
    assert [list(p.answers) for p in prompts] == [row["answers"] for row in rows]
    assert [p.prompt_tokens for p in prompts] == [row["prompt_length"] for row in rows]
    assert {(p.task, p.length, p.answer_tokens) for p in prompts} == {(task, 16384, TASKS[task].answer_tokens)}
    head, tail = TASKS[task].template.split("{context}")
    for prompt in prompts:
        middle = prompt.prompt.removeprefix(head)
        assert middle != prompt.prompt
        for part in tail.split("{input}"):  # what stands around the question, in this order
            assert part in middle
            middle = middle.split(part, 1)[1] if part else middle


@pytest.mark.parametrize("task", TASKS)
def test_longbench_s_own_rows_become_prompts(task, jsonl):
    [prompt] = load_longbench(task, jsonl(task), length=8192)
    assert ROW["context"] in prompt.prompt and prompt.answers == ("Rain", "rain")
    assert (prompt.task, prompt.length, prompt.answer_tokens) == (task, 8192, TASKS[task].answer_tokens)
    assert ("What fell?" in prompt.prompt) == ("{input}" in TASKS[task].template)


def test_a_data_set_folder_is_read_as_the_hub_s_is(tmp_path):
    (tmp_path / "trec").mkdir()
    row = {"context": "Question: a ?\nType: Food", "question": "Question: b ?\nType:", "answers": ["Price"]}
    pq.write_table(pa.Table.from_pylist([row, row]), tmp_path / "trec" / "test-0.parquet")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: trec\n  data_files:\n  - split: test\n    path: trec/test-*\n---\n"
    )
    prompts = load_longbench("trec", tmp_path, samples=1)
    assert [p.prompt for p in prompts] == [TASKS["trec"].template.format(context=row["context"], input=row["question"])]


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(SettingError, match=r"no LongBench task 'quasper' \(did you mean 'qasper'\?\)"):
        load_longbench("quasper", "anywhere")


def test_a_folder_without_the_length_says_which_there_are(tmp_path):
    (tmp_path / "qasper_4096.parquet").touch()
    with pytest.raises(DataError, match=r"neither qasper_16384.parquet nor qasper.jsonl; lengths there: qasper_4096"):
        load_longbench("qasper", tmp_path)


def test_a_hub_name_that_cannot_be_reached_is_one_line():
    with pytest.raises(ServiceError, match="data set 'no/such-data': no such folder") as refused:
        load_longbench("qasper", "no/such-data")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"context": "x", "answers": ["y"]}, "row 1 needs context, input"),
        ({**ROW, "answers": []}, "row 1 has no answer or an empty one"),
        ({**ROW, "answers": [""]}, "row 1 has no answer or an empty one"),
    ],
)
def test_a_row_without_question_or_answer_is_refused_by_number(row, message, jsonl):
    with pytest.raises(DataError, match=message):
        load_longbench("qasper", jsonl(rows=[ROW, row]))


def test_a_line_that_is_not_json_is_named(jsonl):
    folder = jsonl()
    (folder / "qasper.jsonl").write_text(json.dumps(ROW) + "\n{oops\n")
    with pytest.raises(DataError, match=r"qasper.jsonl: line 2 is not JSON"):
        load_longbench("qasper", folder)


def test_an_answer_given_as_text_is_one_answer(tmp_path):
    (tmp_path / "qasper.jsonl").write_text(json.dumps(ROW | {"answers": "the king"}) + "\n")
    assert load_longbench("qasper", tmp_path)[0].answers == ("the king",)


@pytest.mark.parametrize("answers", ["", [], [""], [3], 3, None, {"text": "a"}])
def test_answers_that_are_no_texts_are_refused_with_their_row(tmp_path, answers):
    (tmp_path / "qasper.jsonl").write_text(json.dumps(ROW | {"answers": answers}) + "\n")
    with pytest.raises(DataError, match="row 0 has no answer or an empty one"):
        load_longbench("qasper", tmp_path)


def test_json_lines_may_have_a_byte_order_mark_blank_lines_and_crlf(tmp_path):
    line = json.dumps(ROW).encode()
    (tmp_path / "qasper.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line + b"\r\n\n")
    assert len(load_longbench("qasper", tmp_path)) == 2


@pytest.mark.parametrize(
    ("text", "said"), [(b"[1]\n", "row 0: expected a row of LongBench"), (b'{"a": "\xff"}\n', "not UTF-8 text")]
)
def test_lines_that_are_no_objects_or_not_utf_8_are_one_line(tmp_path, text, said):
    (tmp_path / "qasper.jsonl").write_bytes(text)
    with pytest.raises(DataError, match=said):
        load_longbench("qasper", tmp_path)
