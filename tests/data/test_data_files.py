"""Which files of a folder are data: not those that macOS, Spark and S3 put beside them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refine.data.corpus.sources import read_source
from refine.data.parquet import find_parquet_files
from refine.errors import DataError
from refine.settings.data import ParquetSource

DATA = "part-00000.snappy.parquet"
BESIDE = ("_SUCCESS", ".part-00000.snappy.parquet.crc", "._part-00000.snappy.parquet", ".DS_Store", "_metadata")
DEEPER = ("_delta_log/1.checkpoint.parquet", "_temporary/0/part-1.parquet", ".hidden/part-2.parquet")


def spark_folder(folder):
    """What Spark writes, after a visit of macOS. One file holds data."""
    for name in (*BESIDE, *DEEPER):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"" if name == "_SUCCESS" else b"no parquet")
    pq.write_table(pa.table({"text": ["a text"]}), folder / DATA)
    return folder


@pytest.mark.parametrize("pattern", ["", "/", "/*", "/*.parquet", "/**/*.parquet", "/part-*"])
def test_only_the_data_of_a_spark_folder_is_read(pattern, tmp_path):
    folder = spark_folder(tmp_path / "written")
    (found,) = read_source(ParquetSource(path=f"{folder}{pattern}", min_characters=1))
    assert found.text == "a text" and found.id == f"{folder}/{DATA}#0"


def test_a_pattern_can_match_spark_folders_and_name_hidden_files(tmp_path):
    spark_folder(tmp_path / "one.parquet")
    names = find_parquet_files(str(tmp_path / "*.parquet"))[1]
    assert list(names) == [f"{tmp_path}/one.parquet/{DATA}"]
    assert list(find_parquet_files(f"{tmp_path}/one.parquet/._*.parquet")[1])
    assert list(find_parquet_files(f"{tmp_path}/one.parquet/{BESIDE[2]}")[1])


@pytest.mark.parametrize("name", ["data[1]", "a*b", "what?", "100% #x ü", 'it\'s "x"'])
def test_a_folder_that_exists_is_no_pattern(name, tmp_path, monkeypatch):
    folder = spark_folder(tmp_path / name)
    (tmp_path / "data1").mkdir()
    pq.write_table(pa.table({"text": ["wrong"]}), tmp_path / "data1" / "a.parquet")
    monkeypatch.chdir(tmp_path)
    for path in (f"{name}", f"{name}/{DATA}", f"{name}/*.parquet", str(folder), f"{folder}/part-*"):
        start = str(folder) if path.startswith("/") else name
        (found,) = read_source(ParquetSource(path=path, min_characters=1))
        assert found.text == "a text" and found.id == f"{start}/{DATA}#0"


def test_brackets_of_a_folder_that_does_not_exist_are_a_pattern(tmp_path):
    pq.write_table(pa.table({"text": ["a text"]}), tmp_path / "a1.parquet")
    assert list(find_parquet_files(f"{tmp_path}/a[0-9].parquet")[1]) == [f"{tmp_path}/a1.parquet"]


def test_an_empty_file_is_refused_before_anything_is_read(tmp_path):
    spark_folder(tmp_path)
    (tmp_path / "part-00001.parquet").touch()
    with pytest.raises(DataError, match=r"part-00001\.parquet: an empty file \(0 bytes\)"):
        read_source(ParquetSource(path=str(tmp_path)))


def test_a_folder_with_nothing_but_marks_says_so(tmp_path):
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "._a.parquet").touch()
    with pytest.raises(DataError, match=r"no parquet file there; .*begin with \. or _ do not count"):
        read_source(ParquetSource(path=str(tmp_path)))
