"""The raw documents of a split come in order; a file in another form is named."""

from __future__ import annotations

import pytest

from refine.data.raw_documents import read_documents, read_texts
from refine.errors import DataError


def test_documents_and_texts_come_in_the_order_of_the_file(parquet):
    names = [f"d{number}" for number in range(40)]
    path = parquet("train", text=[name.upper() for name in names], id=names, title=names)
    assert list(read_documents(path)) == [(name, name.upper(), None) for name in names]
    assert list(read_texts(path)) == [name.upper() for name in names]


def test_a_missing_file_another_format_and_a_missing_column_are_errors_of_one_line(parquet, tmp_path):
    with pytest.raises(DataError, match=r"none\.parquet is missing: run `refine data fetch` first"):
        list(read_texts(tmp_path / "none.parquet"))
    (tmp_path / "text.parquet").write_text("plain text")
    with pytest.raises(DataError, match=r"text\.parquet: not a parquet file \(") as refused:
        list(read_documents(tmp_path / "text.parquet"))
    assert "\n" not in str(refused.value)
    with pytest.raises(DataError, match="no column 'text'; it has id, body"):
        list(read_documents(parquet("other", id=["a"], body=["b"])))
