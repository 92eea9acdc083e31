"""Files and folders are written completely or not at all."""

from __future__ import annotations

import pytest

from refine.errors import DataError
from refine.system.files import file_beside, folder_beside, json_values, why_not_writable, write_json, write_text


def test_a_folder_appears_with_all_its_files_when_the_block_ends(tmp_path):
    with folder_beside(tmp_path / "deep" / "out") as beside:
        (beside / "a").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "a").read_text() == "1"


def test_the_old_content_is_replaced_not_mixed(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with folder_beside(tmp_path / "out") as beside:
        (beside / "new").write_text("new")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failure_leaves_the_old_content_and_nothing_beside(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(ValueError), folder_beside(tmp_path / "out") as beside:
        (beside / "new").write_text("half")
        raise ValueError
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file/out: cannot be written"), folder_beside(tmp_path / "file" / "out"):
        pass


def test_other_users_can_read_the_folder(tmp_path):
    with folder_beside(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_a_file_is_replaced_completely_or_stays_as_it_was(tmp_path):
    path = write_text(tmp_path / "deep" / "note.txt", "first")
    with pytest.raises(ValueError), file_beside(path) as beside:
        beside.write_text("half")
        raise ValueError
    assert path.read_text() == "first" and [one.name for one in path.parent.iterdir()] == ["note.txt"]
    write_json(path, {"b": 1, "a": [2]})
    assert path.read_text() == '{\n  "a": [\n    2\n  ],\n  "b": 1\n}\n'


def test_a_folder_that_cannot_be_written_has_a_reason(tmp_path):
    assert why_not_writable(tmp_path / "new" / "folder") is None and not list((tmp_path / "new" / "folder").iterdir())
    (tmp_path / "file").write_text("in the way")
    assert why_not_writable(tmp_path / "file" / "folder") == "Not a directory"


def test_a_file_in_the_place_of_a_folder_is_refused_and_stays(tmp_path):
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(DataError, match=r"out: cannot be written \(Not a directory\)"), folder_beside(tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_text() == "in the way" and [one.name for one in tmp_path.iterdir()] == ["out"]


def test_what_is_written_as_json_is_json(tmp_path):
    path = write_json(tmp_path / "a.json", {"a": 1.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n  "a": 1.5\n}\n' and [one.name for one in tmp_path.iterdir()] == ["a.json"]
    assert json_values({"a": float("inf"), "b": 2.0, "c": [1]}) == {"a": None, "b": 2.0, "c": [1]}
