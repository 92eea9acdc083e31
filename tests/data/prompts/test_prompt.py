"""The schema of prompts: round trip, published names, errors that name file and row."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refine.data.prompts.prompt import Prompt, load_prompts, write_prompts
from refine.errors import DataError

ONE = Prompt("Who?", ("Ann", "Anne"), "someqa", 64, 8, 12, (50.0,))
ROW = {"prompt": "Who?", "answers": ["Ann"], "task": "someqa", "length": 64, "answer_tokens": 8}


@pytest.fixture
def parquet(tmp_path):
    def write(*rows, name="file.parquet"):
        pq.write_table(pa.Table.from_pylist(list(rows)), tmp_path / name)
        return tmp_path / name

    return write


def test_prompts_come_back_as_they_were_written(tmp_path):
    path = write_prompts([ONE, Prompt("Where?", ("There",), "someqa", 64, 8)], tmp_path / "new" / "file.parquet")
    assert load_prompts(path) == [ONE, Prompt("Where?", ("There",), "someqa", 64, 8)]
    assert [p.name for p in path.parent.iterdir()] == ["file.parquet"]


@pytest.mark.requires_shared
@pytest.mark.parametrize("name", ["hotpotqa", "squadqa"])
def test_published_ruler_files_load_as_they_are(name, shared_data):
    path = shared_data / "ruler" / f"ruler_{name}_delta_net_4096_200_test.parquet"
    prompts = load_prompts(path, answer_tokens=32)
    rows = pq.read_table(path).to_pylist()
    assert [list(p.answers) for p in prompts] == [row["answer"] for row in rows]
    assert {(p.task, p.length) for p in prompts} == {(f"ruler_{name}", 4096)}


def test_the_length_may_stand_in_the_file_s_name(parquet):
    row = {"prompt": "Who?", "answer": ["Ann"], "task": "lcc", "max_gen_tokens": 64, "prompt_length": 3}
    [prompt] = load_prompts(parquet(row, name="lcc_16384.parquet"))
    assert prompt == Prompt("Who?", ("Ann",), "lcc", 16384, 64, 3)


@pytest.mark.parametrize("column", ["prompt", "answers", "task", "length", "answer_tokens"])
def test_a_missing_column_is_named_with_the_file(column, parquet):
    row = {name: value for name, value in ROW.items() if name != column}
    with pytest.raises(DataError, match=rf"file.parquet: no column '{column}'"):
        load_prompts(parquet(row))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": []}, "row 1 has no answer or an empty one"),
        ({"answers": ["Ann", ""]}, "row 1 has no answer or an empty one"),
        ({"answers": None}, "row 1 has no answer or an empty one"),
        ({"prompt": ""}, "row 1 has an empty prompt"),
        ({"length": None}, "row 1 has no length"),
    ],
)
def test_a_row_that_cannot_be_asked_or_scored_is_refused_by_number(change, message, parquet):
    with pytest.raises(DataError, match=message):
        load_prompts(parquet(ROW, ROW | change))


def test_a_missing_file_another_format_and_no_rows_are_refused(tmp_path, parquet):
    with pytest.raises(DataError, match="no such file of prompts"):
        load_prompts(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(DataError, match="not a parquet file"):
        load_prompts(tmp_path / "text.parquet")
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match="holds no prompts"):
        load_prompts(tmp_path / "empty.parquet")
    with pytest.raises(DataError, match="no prompts to write"):
        write_prompts([], tmp_path / "new.parquet")
