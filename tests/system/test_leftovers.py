"""What a killed process left is removed at the next start; what a living process writes stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from refine.system.files import file_beside, folder_beside, hidden, replace_folder, write_text
from refine.system.leftovers import OLD, sweep, temporary_folder
from tests.conftest import wait_for

# A process in the middle of a folder, a file and a temporary folder.
WRITER = """
import sys, time
from pathlib import Path
from refine.system.files import file_beside, folder_beside
from refine.system.leftovers import temporary_folder
with folder_beside("data") as folder, file_beside("note.txt") as file, temporary_folder("model") as temporary:
    (folder / "half").write_text("half")
    file.write_text("half")
    (temporary / "half").write_text("half")
    Path("ready").touch()
    time.sleep(600)
"""


@pytest.fixture
def writer(tmp_path, monkeypatch, checkout):
    """The process WRITER in `tmp_path`, which is the machine's temporary folder too."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(checkout)}
    )
    assert wait_for((tmp_path / "ready").exists)
    (tmp_path / "ready").unlink()
    yield process
    process.kill()
    process.wait()


def use_everything(folder: Path) -> None:
    """What the next start of a command does."""
    sweep(folder)
    with temporary_folder("model"):
        pass


def test_what_a_killed_process_left_is_removed_at_the_next_start(writer, tmp_path):
    assert len(list(tmp_path.iterdir())) == 3
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    use_everything(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_living_process_writes_stays(writer, tmp_path):
    before = sorted(tmp_path.iterdir())
    use_everything(tmp_path)
    assert sorted(tmp_path.iterdir()) == before and writer.poll() is None


def test_writing_a_folder_removes_what_was_left_of_that_folder_only(writer, tmp_path):
    writer.kill()
    writer.wait()
    with folder_beside(tmp_path / "data"):
        pass
    assert not list(tmp_path.glob(".data.*")) and list(tmp_path.glob(".note.txt.*"))


def test_another_process_with_the_same_id_does_not_keep_what_was_left(tmp_path):
    left = hidden(tmp_path / "data", "unfinished")  # of this process, but last changed before it started
    left.mkdir()
    os.utime(left, (1.0e9, 1.0e9))
    assert sweep(tmp_path) == [left] and not left.exists()


@pytest.mark.parametrize("name", [".data.k3j2h1.unfinished", ".data.0123abcd-1.x.unfinished"], ids=["none", "machine"])
def test_what_has_an_unknown_owner_is_removed_after_a_day(name, tmp_path):
    """Names of earlier versions, and names from other machines that share the folder."""
    left = tmp_path / name
    left.mkdir()
    (left / "half").touch()
    assert sweep(tmp_path) == []
    for path in (left / "half", left):
        os.utime(path, (time.time() - OLD - 60,) * 2)
    assert sweep(tmp_path) == [left]


def test_the_holder_of_a_folders_lock_removes_everything_unfinished_in_it(tmp_path):
    (tmp_path / ".checkpoint-3.unfinished").mkdir()
    assert sweep(tmp_path) == [] and len(sweep(tmp_path, locked=True)) == 1


def test_a_folder_whose_replacement_was_cut_short_comes_back(tmp_path, monkeypatch):
    write_text(tmp_path / "data" / "old", "old")
    write_text(tmp_path / "new" / "new", "new")
    real = os.replace

    def killed_at_the_second_step(source, target):
        if Path(source).name == "new":
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed_at_the_second_step)
        replace_folder(tmp_path / "new", tmp_path / "data")
    assert not (tmp_path / "data").exists()
    sweep(tmp_path, locked=True)
    assert (tmp_path / "data" / "old").read_text() == "old" and not list(tmp_path.glob(".*"))


def test_a_link_is_written_through(tmp_path):
    write_text(tmp_path / "disk" / "data" / "old", "old")
    write_text(tmp_path / "disk" / "note", "old")
    for name in ("data", "note"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    with folder_beside(tmp_path / "data") as beside, file_beside(tmp_path / "note") as file:
        (beside / "new").touch()
        file.write_text("new")
    assert (tmp_path / "data").is_symlink() and (tmp_path / "note").is_symlink()
    assert [path.name for path in (tmp_path / "disk" / "data").iterdir()] == ["new"]
    assert (tmp_path / "disk" / "note").read_text() == "new"
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["data", "note"]
