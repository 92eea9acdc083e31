"""A record's identity changes with everything that a result depends on, and with nothing else."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from refine import settings
from refine.errors import DataError
from refine.identity import (
    UNKNOWN,
    code_hash,
    committed,
    data_version,
    git_state,
    hash_of,
    hash_of_files,
    identify,
)  # fmt: skip


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, checkout: Path) -> Path:
    """A repository with params.yaml, one room and data.dvc, committed."""
    (tmp_path / "params.yaml").write_text((checkout / "params.yaml").read_text())
    (tmp_path / "refine").mkdir()
    (tmp_path / "refine" / "loss.py").write_text("loss = 0\n")
    (tmp_path / "data.dvc").write_text("outs:\n- md5: 0123abcd.dir\n  path: data\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_the_committed_text_of_a_file_is_that_of_the_commit(repository, tmp_path_factory):
    (repository / "refine" / "loss.py").write_text("loss = 1\n")
    assert committed(repository / "refine" / "loss.py") == "loss = 0"
    assert committed(repository / "refine" / "new.py") is None
    assert committed(tmp_path_factory.mktemp("no_git") / "loss.py") is None


def test_the_order_of_keys_does_not_change_a_hash_but_a_value_does():
    assert hash_of({"a": 1, "b": [2, 3]}) == hash_of({"b": [2, 3], "a": 1})
    assert hash_of({"a": 1}) != hash_of({"a": 2})


def test_a_folders_hash_depends_on_contents_and_names_and_not_on_its_place(tmp_path):
    for place in ("one", "two"):
        (tmp_path / place / "inner").mkdir(parents=True)
        (tmp_path / place / "inner" / "config.json").write_text("{}")
    assert hash_of_files(tmp_path / "one") == hash_of_files(tmp_path / "two")
    (tmp_path / "two" / "inner" / "config.json").write_text("{ }")
    assert hash_of_files(tmp_path / "one") != hash_of_files(tmp_path / "two")
    (tmp_path / "one" / "inner" / "config.json").rename(tmp_path / "one" / "inner" / "conf.json")
    with pytest.raises(FileNotFoundError):
        hash_of_files(tmp_path / "three")


def test_code_of_other_rooms_does_not_change_a_rooms_hash(tmp_path):
    for room in ("ops", "cli"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "a.py").write_text("a = 1\n")
    before, everything = code_hash("ops", package=tmp_path), code_hash(package=tmp_path)
    (tmp_path / "cli" / "a.py").write_text("a = 2\n")
    assert code_hash("ops", package=tmp_path) == before
    assert code_hash(package=tmp_path) != everything
    (tmp_path / "ops" / "a.py").write_text("a = 2\n")
    assert code_hash("ops", package=tmp_path) != before
    with pytest.raises(FileNotFoundError, match="no room 'objectiv'"):
        code_hash("objectiv")


def test_a_changed_source_or_setting_makes_the_commit_dirty_and_a_written_result_does_not(repository):
    assert git_state(repository) == (git(repository, "rev-parse", "HEAD"), False)
    (repository / "results").mkdir()
    (repository / "results" / "metrics.json").write_text("{}")
    (repository / "dvc.lock").write_text("schema: '2.0'\n")
    assert not git_state(repository)[1]
    (repository / "refine" / "new.py").write_text("")
    assert git_state(repository)[1]


def test_an_identity_names_commit_settings_data_and_seed(repository):
    first = identify(settings.load(repository / "params.yaml"), repository)
    assert first.known and first.data == "0123abcd.dir" and first.seed == 1
    other = identify(settings.load(repository / "params.yaml", ("training.mid.steps=31",)), repository)
    assert other.params != first.params and other.commit == first.commit
    tags = first.tags()
    assert tags["mlflow.source.git.commit"] == tags["identity.commit"] == first.commit
    assert tags["identity.dirty"] == "false"


def test_parts_that_cannot_be_determined_are_recorded_as_unknown(tmp_path, checkout, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) == (UNKNOWN, True)
    assert data_version(tmp_path / "data.dvc") == UNKNOWN
    identity = identify(settings.load(checkout / "params.yaml"), tmp_path)
    assert not identity.known and identity.tags()["identity.commit"] == UNKNOWN


DVC = "outs:\n- md5: 0123.dir\n  path: data\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (DVC + "outs: []\n", "key 'outs' is given twice"),
        (DVC.replace("0123.dir", "7"), "expected text as md5, found 7"),
        ("<<<<<<< HEAD\n" + DVC, "not valid YAML"),
        ("outs: []\n", "not what `dvc add` writes"),
        (DVC.replace("md5", "etag"), "lacks 'md5'"),
        ('"\\ud800": 1\n' + DVC, "half of a character"),
    ],
)
def test_a_data_version_that_is_not_dvc_s_is_refused_with_the_file_s_name(tmp_path, text, said):
    (tmp_path / "data.dvc").write_text(text)
    with pytest.raises(DataError, match=re.escape(said)) as error:
        data_version(tmp_path / "data.dvc")
    assert str(error.value).startswith(str(tmp_path / "data.dvc")) and "\n" not in str(error.value)


def test_hidden_files_change_no_hash(tmp_path):
    (tmp_path / "a.py").write_text("1")
    before = hash_of_files(tmp_path), code_hash(package=tmp_path)
    (tmp_path / "._a.py").write_text("2")
    assert (hash_of_files(tmp_path), code_hash(package=tmp_path)) == before
