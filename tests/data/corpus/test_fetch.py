"""A fetch gives the data/ that data.dvc records, or changes nothing; no work and no text is in two splits."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import yaml

from refine import settings
from refine.data.corpus import version
from refine.data.corpus.fetch import COLUMNS, accept_data, fetch_data, write_splits
from refine.errors import DataError
from refine.settings.data import DataSettings, PackageSource, ParquetSource


@pytest.fixture
def built(small_settings, tmp_path, write_record):
    """A data/ and its data.dvc: (settings, arguments of fetch_data)."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_splits(small_settings, folder)
    return small_settings, {"folder": folder, "record": write_record(folder)}


def _state(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_sample_s_text_is_the_recorded_one(checkout, tmp_path):
    """The code, params.yaml, the pinned archives and the pinned pyarrow give what data.dvc records."""
    write_splits(settings.load(checkout / "params.yaml").data, tmp_path)
    assert version.differences(version.of(tmp_path), version.recorded(checkout / "data.dvc")) == []


def test_the_same_sources_give_the_same_bytes(small_settings, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_splits(small_settings, tmp_path / name)
    assert _state(tmp_path / "one") == _state(tmp_path / "two")


def test_each_split_is_a_parquet_file_in_one_schema(built):
    _, places = built
    for split in ("train", "validation", "second_domain"):
        table = pq.read_table(places["folder"] / f"{split}.parquet")
        assert tuple(table.column_names) == COLUMNS and table.num_rows == 3
        assert table["title"].to_pylist() == [f"{split} {number}" for number in range(3)]


def test_a_data_that_is_up_to_date_is_left_alone(built):
    before = {path: path.stat().st_mtime_ns for path in built[1]["folder"].iterdir()}
    assert fetch_data(built[0], **built[1]).splits == {}
    assert {path: path.stat().st_mtime_ns for path in built[1]["folder"].iterdir()} == before


def test_a_lost_data_is_restored_as_recorded(built):
    chosen, places = built
    expected = version.of(places["folder"])
    shutil.rmtree(places["folder"])
    done = fetch_data(chosen, **places)
    assert version.of(places["folder"]) == expected and done.md5 == expected.md5 and not done.recorded


def test_an_altered_file_is_named_and_left_until_replace_is_asked_for(built):
    chosen, places = built
    original = _state(places["folder"])
    (places["folder"] / "train.parquet").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"data/train\.parquet differs; `refine data fetch --replace`"):
        fetch_data(chosen, **places)
    assert (places["folder"] / "train.parquet").read_bytes() == b"mine"
    fetch_data(chosen, replace=True, **places)
    assert _state(places["folder"]) == original


def test_sources_that_give_something_else_than_recorded_are_refused_with_the_reason(built, parquet, tmp_path):
    chosen, places = built
    before = _state(places["folder"])
    content = yaml.safe_load(places["record"].read_text())
    content["meta"]["made"] = {"settings": "another", "pyarrow": "1.0"}
    places["record"].write_text(yaml.safe_dump(content))
    other = chosen.model_copy(update={"train": (ParquetSource(path=parquet("new", text=["Sing, heav'nly Muse"])),)})
    with pytest.raises(DataError) as refused:
        fetch_data(other, **places)
    message = str(refused.value)
    assert "data/train.parquet differs" in message and "validation" not in message
    assert "the section `data` of the settings" in message and "pyarrow is" in message and "--update" in message
    assert _state(places["folder"]) == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_data_that_nobody_versioned_is_not_overwritten(small_settings, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.parquet").write_text("mine")
    with pytest.raises(DataError, match="`refine data accept` versions the files as they are"):
        fetch_data(small_settings, folder=tmp_path / "data", record=tmp_path / "data.dvc")
    assert (tmp_path / "data" / "mine.parquet").read_text() == "mine"


def test_a_source_that_fails_leaves_nothing_half_written(built, tmp_path):
    chosen, places = built
    shutil.rmtree(places["folder"])
    other = chosen.model_copy(update={"train": (ParquetSource(path=str(tmp_path / "nothing")),)})
    with pytest.raises(DataError, match="no parquet file there"):
        fetch_data(other, **places)
    assert not places["folder"].exists()
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_first_fetch_and_an_accepted_change_are_recorded_in_dvc(small_settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], check=True, capture_output=True)
    done = fetch_data(small_settings)
    content = yaml.safe_load((tmp_path / "data.dvc").read_text())
    assert done.recorded and content["outs"][0]["md5"] == content["meta"]["md5"] == done.md5
    assert fetch_data(small_settings).splits == {}
    (tmp_path / "data" / "train.parquet").write_bytes(b"mine")
    assert accept_data() == version.recorded().md5 == version.recorded().listed != done.md5
    assert fetch_data(small_settings).splits == {}
    assert fetch_data(small_settings, update=True).md5 == done.md5


def test_a_work_in_two_splits_is_an_error_that_names_it(tmp_path):
    twice = DataSettings(
        train=(PackageSource(texts="plays", works=("hamlet", "macbeth")),),
        validation=(PackageSource(texts="plays", works=("macbeth",)),),
        second_domain=(PackageSource(texts="milton"),),
    )
    with pytest.raises(DataError, match="work 'macbeth' is in two splits, validation and train"):
        write_splits(twice, tmp_path)


def test_a_source_taken_whole_by_two_splits_is_that_error_too(tmp_path):
    whole = (PackageSource(texts="milton"),)
    with pytest.raises(DataError, match="work 'areopagitica' is in two splits, validation and second_domain"):
        write_splits(DataSettings(train=whole, validation=whole, second_domain=whole), tmp_path)


def test_rows_of_one_file_may_be_shared_out_but_not_shared(parquet, tmp_path):
    path = parquet("all", text=[f"document {number}" for number in range(6)])
    parts = [ParquetSource(path=path, skip=2 * number, documents=2) for number in range(3)]
    chosen = DataSettings(train=(parts[0],), validation=(parts[1],), second_domain=(parts[2],))
    assert {split: counts.documents for split, counts in write_splits(chosen, tmp_path).items()} == {
        "validation": 2,
        "second_domain": 2,
        "train": 2,
    }
    overlapping = chosen.model_copy(update={"train": (ParquetSource(path=path, skip=1, documents=2),)})
    with pytest.raises(DataError, match=r"all\.parquet#2' is in two splits, validation and train"):
        write_splits(overlapping, tmp_path)


def test_training_text_that_is_held_out_under_another_name_is_left_out_and_counted(parquet, tmp_path):
    held = parquet("held", text=["The very same text.", "Another."])
    train = parquet("train_too", text=["the very  same\nTEXT.", "Of its own."])
    rest = parquet("rest", text=["A third."])
    chosen = DataSettings(
        train=(ParquetSource(path=train),),
        validation=(ParquetSource(path=held),),
        second_domain=(ParquetSource(path=rest),),
    )
    counts = write_splits(chosen, tmp_path)["train"]
    assert (counts.documents, counts.left_out) == (1, 1)
    assert pq.read_table(tmp_path / "train.parquet")["text"].to_pylist() == ["Of its own."]


def test_a_split_without_a_new_document_is_an_error(parquet, tmp_path):
    same = [ParquetSource(path=parquet(name, text=["The same."])) for name in ("a", "b")]
    other = ParquetSource(path=parquet("c", text=["Other."]))
    chosen = DataSettings(train=(same[0],), validation=(same[1],), second_domain=(other,))
    with pytest.raises(DataError, match=r"data\.train: no document is left: the text of all 1 is in an earlier split"):
        write_splits(chosen, tmp_path)


def test_the_same_document_twice_in_a_split_is_taken_once(parquet, tmp_path):
    path = parquet("once", text=["Once."])
    sources = tuple(ParquetSource(path=parquet(name, text=[name])) for name in ("v", "s"))
    chosen = DataSettings(train=(ParquetSource(path=path),) * 2, validation=sources[:1], second_domain=sources[1:])
    assert write_splits(chosen, tmp_path)["train"].documents == 1


def test_hidden_files_beside_the_splits_are_no_difference(built, tmp_path, monkeypatch):
    """macOS writes .DS_Store into every folder that it shows."""
    (built[1]["folder"] / ".DS_Store").write_bytes(b"1")
    (built[1]["folder"] / "._train.parquet").write_bytes(b"1")
    assert fetch_data(built[0], **built[1]).splits == {}


def test_dvc_versions_no_hidden_file_either(built, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], check=True)
    (tmp_path / "data" / ".DS_Store").write_bytes(b"1")
    (tmp_path / "data.dvc").unlink()
    before = version.of("data").md5
    assert accept_data() == before and version.recorded().listed == before
    (tmp_path / "data" / ".DS_Store").write_bytes(b"2")
    assert accept_data() == before and (tmp_path / ".dvcignore").read_text().count("/data/**/.*") == 1


@pytest.mark.parametrize("action", ["fetch", "accept"])
def test_a_data_that_is_a_link_is_refused_before_anything_is_read(action, built, tmp_path):
    (tmp_path / "data").rename(tmp_path / "disk")
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    before = _state(tmp_path / "disk")
    with pytest.raises(DataError, match="data is a symbolic link, which DVC does not version"):
        fetch_data(built[0], update=True, **built[1]) if action == "fetch" else accept_data(**built[1])
    assert _state(tmp_path / "disk") == before and (tmp_path / "data").is_symlink()


def test_a_killed_fetch_leaves_nothing_after_the_next_start(built, tmp_path):
    code = (
        "import os, signal; from refine.system.files import folder_beside\n"
        "with folder_beside('data') as beside:\n"
        "    (beside / 'train.parquet').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert list(tmp_path.glob(".data.*"))
    assert fetch_data(built[0], **built[1]).splits == {}  # up to date: it writes nothing, but it sweeps
    assert not list(tmp_path.glob(".data.*"))
