"""Essays come from files, folders, parquet and data sets; a source without text is refused."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refine.data.prompts.essays import read_essays
from refine.errors import DataError, ServiceError


def test_a_folder_gives_its_texts_and_parquet_rows_in_order(tmp_path):
    (tmp_path / "b.md").write_text("Second.")
    (tmp_path / "a.txt").write_text("First.")
    (tmp_path / "sub").mkdir()
    pq.write_table(pa.table({"text": ["Third.", " ", "Fourth."]}), tmp_path / "sub" / "c.parquet")
    (tmp_path / "ignored.json").write_text("{}")
    assert read_essays(tmp_path) == ["First.", "Second.", "Third.", "Fourth."]
    assert read_essays(tmp_path / "b.md") == ["Second."]
    assert read_essays(tmp_path / "sub" / "c.parquet") == ["Third.", "Fourth."]


def test_another_column_can_be_named(tmp_path):
    pq.write_table(pa.table({"essay": ["One."]}), tmp_path / "c.parquet")
    assert read_essays(tmp_path / "c.parquet", column="essay") == ["One."]


def test_a_source_without_text_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match="no text in it; essays are"):
        read_essays(tmp_path)
    pq.write_table(pa.table({"essay": ["One."]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"c\.parquet: no column 'text'"):
        read_essays(tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"latin\.txt: not UTF-8 text"):
        read_essays(tmp_path / "latin.txt")
    with pytest.raises(ServiceError, match="data set 'no/essays'"):
        read_essays("no/essays")


def test_hidden_files_are_no_essays(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "._a.txt").write_bytes(b"\x00\xff")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "a.txt").write_text("two")
    assert read_essays(tmp_path) == ["one"]
