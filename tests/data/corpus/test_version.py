"""The version in data.dvc, and how data/ differs from it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from refine.data.corpus import version
from refine.errors import DataError


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    for name in ("train", "validation", "deep/more"):
        (data / f"{name}.parquet").write_text(name)
    return data


def test_the_md5_of_a_folder_is_the_one_that_dvc_computes(folder, tmp_path):
    for command in (["init", "--no-scm", "--quiet"], ["config", "core.analytics", "false"], ["add", "-q", "data"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=tmp_path, check=True, capture_output=True)
    listed = yaml.safe_load((tmp_path / "data.dvc").read_text())["outs"][0]["md5"]
    assert version.of(folder).md5 == listed
    assert version.recorded(tmp_path / "data.dvc") == version.Version(listed, listed=listed)


def test_differences_are_named_file_by_file(folder, write_record):
    recorded = version.recorded(write_record(folder))
    assert version.differences(version.of(folder), recorded) == []
    (folder / "train.parquet").write_text("altered")
    (folder / "validation.parquet").unlink()
    (folder / "own.parquet").write_text("new")
    assert version.differences(version.of(folder), recorded) == [
        "data/own.parquet is not part of that version",
        "data/train.parquet differs",
        "data/validation.parquet is missing",
    ]


def test_a_folder_versioned_by_dvc_alone_is_compared_as_a_whole(folder, write_record):
    recorded = version.recorded(write_record(folder, meta=False))
    assert version.differences(version.of(folder), recorded) == []
    (folder / "train.parquet").write_text("altered")
    assert "data.dvc says" in version.differences(version.of(folder), recorded)[0]


def test_a_new_version_that_dvc_recorded_by_itself_is_still_a_difference(folder, write_record, tmp_path):
    """`dvc repro` rewrites the md5 in data.dvc when data/ was altered."""
    record = write_record(folder)
    (folder / "train.parquet").write_text("altered")
    content = yaml.safe_load(record.read_text())
    content["outs"][0]["md5"] = version.of(folder).md5
    record.write_text(yaml.safe_dump(content))
    assert version.differences(version.of(folder), version.recorded(record)) == ["data/train.parquet differs"]


def test_a_missing_folder_names_the_commands_that_bring_it(tmp_path):
    with pytest.raises(DataError, match="is missing: run `refine data fetch`, or `dvc pull`"):
        version.of(tmp_path / "data")


@pytest.mark.parametrize("text", ["outs: []", "meta: {}", "[1, 2]", "a: [b", "outs: [{path: data}]"])
def test_a_broken_record_is_named(tmp_path, text):
    (tmp_path / "data.dvc").write_text(text)
    with pytest.raises(DataError, match=r"data\.dvc: not what `dvc add` writes"):
        version.recorded(tmp_path / "data.dvc")


def test_without_a_record_there_is_none(tmp_path):
    assert version.recorded(tmp_path / "data.dvc") is None


def test_a_stage_refuses_a_missing_or_altered_file_of_data(folder, write_record):
    record = write_record(folder)
    version.require_recorded(folder, ["train.parquet", "validation.parquet"], record)
    (folder / "train.parquet").write_text("altered")
    version.require_recorded(folder, ["validation.parquet"], record)
    with pytest.raises(
        DataError, match=r"train\.parquet is not what .*data\.dvc records; `refine data fetch --replace`"
    ):
        version.require_recorded(folder, ["train.parquet"], record)
    (folder / "train.parquet").unlink()
    with pytest.raises(DataError, match=r"train\.parquet is missing: run `refine data fetch`"):
        version.require_recorded(folder, ["train.parquet"], record)


def test_in_another_folder_the_files_only_have_to_exist(folder, write_record, tmp_path):
    record = write_record(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.parquet").write_text("the user's own")
    version.require_recorded(tmp_path / "other", ["train.parquet"], record)
