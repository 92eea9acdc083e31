"""A run names the data that it read, with its hash and its source, once."""

from __future__ import annotations

import json

import mlflow.data
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refine.errors import DataError
from refine.tracking.run import open_run
from refine.tracking.run_inputs import log_inputs, prepared_files, raw_texts

MD5 = "0c5b325bc03ff8187cd8f5c5b997d1a4"
RECORD = f"""
outs:
- md5: 872b9e98b0569f96e8b4955a73604f72.dir
  path: data
meta:
  md5: 872b9e98b0569f96e8b4955a73604f72.dir
  made: {{settings: d74f}}
  files: {{train.parquet: {MD5}, second_domain.parquet: 86d35c59210b9757277c2fbf2c34dc30}}
"""


@pytest.fixture
def data(tmp_path):
    """data/ with one of the two files that data.dvc records."""
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"text": ["a", "b", "c"]}), tmp_path / "data" / "train.parquet")
    (tmp_path / "data.dvc").write_text(RECORD)
    return tmp_path / "data"


def test_the_raw_texts_are_inputs_with_hash_source_and_context(client, experiment, data):
    sources = {"train": [{"kind": "package", "texts": "plays"}]}
    with open_run(client, experiment, "experiment") as run:
        for _ in range(2):  # a resumed run logs them again
            log_inputs(client, run.run_id, raw_texts(sources, data, data.parent / "data.dvc"))
    found = {one.dataset.name: one for one in client.get_run(run.run_id).inputs.dataset_inputs}
    assert set(found) == {"data/train", "data/second_domain"}
    train = found["data/train"]
    assert train.dataset.digest == MD5 and [tag.value for tag in train.tags] == ["training"]
    assert json.loads(train.dataset.source)["made_from"] == sources["train"]
    assert json.loads(train.dataset.profile) == {"data.dvc": "872b9e98b0569f96e8b4955a73604f72.dir", "num_rows": 3}
    assert [tag.value for tag in found["data/second_domain"].tags] == ["evaluation"]
    assert pq.read_table(mlflow.data.get_source(train.dataset).load()).num_rows == 3


def test_without_a_record_there_is_nothing_to_name_and_a_broken_one_is_refused(client, experiment, tmp_path):
    assert raw_texts({}, tmp_path / "data", tmp_path / "data.dvc") == []
    with open_run(client, experiment, "experiment") as run:
        log_inputs(client, run.run_id, [])
    assert client.get_run(run.run_id).inputs.dataset_inputs == []
    (tmp_path / "data.dvc").write_text("outs: 3")
    with pytest.raises(DataError, match="not what `dvc add` writes"):
        raw_texts({}, tmp_path / "data", tmp_path / "data.dvc")


def test_prepared_files_are_named_by_their_place_and_hashed(prepared_folder):
    from refine.phases.prepared_data import Prepared

    found = prepared_files(prepared_folder, Prepared(prepared_folder).read_by("mid"))
    assert [(one.name, one.context) for one in found] == [
        ("documents/train", "training"), ("documents/validation", "validation"),
    ]  # fmt: skip
    assert found[0].profile == {"num_rows": 12} and len({one.digest for one in found}) == 2
