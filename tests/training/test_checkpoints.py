"""A checkpoint is complete, or it is ignored."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from refine.errors import TrainingError
from refine.paths import SHARDS
from refine.training import checkpoints


def write(output: Path, step: int, size: int = 10) -> Path:
    folder = output / f"checkpoint-{step}"
    with checkpoints.written_completely(folder) as staging:
        (staging / "weights").write_bytes(b"x" * size)
        (staging / "sub").mkdir()
        (staging / "sub" / "state").write_text("s")
    return folder


def test_a_folder_appears_complete_and_lists_its_files(tmp_path):
    folder = write(tmp_path, 3)
    listed = json.loads((folder / "complete.json").read_text())
    assert {name: one["size"] for name, one in listed.items()} == {"weights": 10, "sub/state": 1}
    assert checkpoints.is_complete(folder) and checkpoints.last_complete(tmp_path) == folder
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_an_error_while_writing_leaves_nothing_and_the_earlier_one_in_place(tmp_path):
    before = write(tmp_path, 3)
    with pytest.raises(ZeroDivisionError), checkpoints.written_completely(before) as staging:
        (staging / "weights").write_bytes(b"half")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"] and checkpoints.is_complete(before)


def test_a_folder_is_replaced_by_a_complete_one(tmp_path):
    write(tmp_path, 3, size=10)
    assert (write(tmp_path, 3, size=20) / "weights").stat().st_size == 20
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


@pytest.mark.parametrize("damage", ["missing file", "short file", "no manifest", "broken manifest"])
def test_an_incomplete_checkpoint_is_ignored_and_named(tmp_path, caplog, damage):
    good, bad = write(tmp_path, 9), write(tmp_path, 10)
    if damage == "missing file":
        (bad / "weights").unlink()
    elif damage == "short file":
        (bad / "weights").write_bytes(b"x")
    elif damage == "no manifest":
        (bad / "complete.json").unlink()
    else:
        (bad / "complete.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert checkpoints.last_complete(tmp_path) == good
    assert "checkpoint-10 is incomplete or damaged and is ignored" in caplog.text


def test_the_latest_is_by_step_and_not_by_name(tmp_path):
    write(tmp_path, 9), write(tmp_path, 100)
    assert checkpoints.last_complete(tmp_path) == tmp_path / "checkpoint-100"
    assert checkpoints.last_complete(tmp_path / "nothing") is None


def test_pruning_keeps_the_latest_and_the_best(tmp_path):
    folders = [write(tmp_path, step) for step in (1, 2, 3, 4)]
    checkpoints.prune(tmp_path, keep=2, always=folders[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 3440064 vs 3439952"),
        RuntimeError('SafetensorError: I/O error: Os { code: 28, message: "No space left on device" }'),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint_complete(tmp_path, error):
    before = write(tmp_path, 3)
    promise = r"cannot write .*checkpoint-4: .* earlier checkpoints are complete"
    with (
        pytest.raises(TrainingError, match=promise) as caught,
        checkpoints.written_completely(tmp_path / "checkpoint-4"),
    ):
        raise error
    assert "\n" not in str(caught.value)
    assert checkpoints.last_complete(tmp_path) == before


WRITER = """
import sys
from pathlib import Path
from refine.training import checkpoints
output = Path(sys.argv[1])
for step in range(1, 100000):
    with checkpoints.written_completely(output / f"checkpoint-{step}") as staging:
        for number in range(4):
            (staging / f"file{number}").write_bytes(bytes([step % 256]) * 300_000)
    checkpoints.prune(output, keep=2)
"""


def test_a_writer_killed_at_any_moment_leaves_only_complete_checkpoints(tmp_path):
    chance = random.Random(0)
    for trial in range(6):
        output = tmp_path / str(trial)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(output)], env=os.environ)
        while not (output / "checkpoint-1").exists() and not (output / "checkpoint-2").exists():
            assert writer.poll() is None
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.15))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        for folder in output.glob("checkpoint-*"):
            step = int(folder.name.rpartition("-")[2])
            assert checkpoints.is_complete(folder)
            assert {path.read_bytes() for path in folder.glob("file*")} == {bytes([step % 256]) * 300_000}
        assert checkpoints.last_complete(output) is not None
        checkpoints.clean(output)
        assert not list(output.glob(".*"))


def test_a_flipped_bit_is_noticed_and_the_earlier_checkpoint_is_taken(tmp_path):
    for step in (1, 2):
        with checkpoints.written_completely(tmp_path / f"checkpoint-{step}") as staging:
            (staging / "weights").write_bytes(b"0123456789")
    (tmp_path / "checkpoint-2" / "weights").write_bytes(b"0123456788")
    assert checkpoints.last_complete(tmp_path) == tmp_path / "checkpoint-1"


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ("{}", "lists no file"), ("[]", "mapping"), ('{"/dev/zero": 0}', "'/dev/zero' is no file of the folder"),
        ('{"../x": 1}', "is no file of the folder"), ('{"weights": true}', "not a list of files"),
        ('{"weights": {"size": 1}}', "lacks 'sha256'"), ('{"weights": {"size": "1"}}', "1 bytes instead of '1'"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_named(tmp_path, manifest, said):
    (tmp_path / "weights").write_bytes(b"1")
    (tmp_path / "complete.json").write_text(manifest)
    assert said in (checkpoints.damage(tmp_path) or "")


def test_a_manifest_that_lists_sizes_alone_is_read_as_before(tmp_path):
    (tmp_path / "weights").write_bytes(b"0123456789")
    (tmp_path / "complete.json").write_text('{"weights": 10}')
    assert checkpoints.is_complete(tmp_path)
    (tmp_path / "complete.json").write_text('{"weights": 9}')
    assert not checkpoints.is_complete(tmp_path)


def test_a_process_waits_until_it_too_sees_the_checkpoint(tmp_path, monkeypatch):
    """On a slow shared file system a file may come later than the others."""
    folder, slept = write(tmp_path, 3), []
    (folder / "weights").rename(tmp_path / "weights")

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            (tmp_path / "weights").rename(folder / "weights")

    monkeypatch.setattr(checkpoints.time, "sleep", sleep)
    checkpoints.wait_until_complete(folder, 60)
    assert slept == [1.0] * 3
    checkpoints.wait_until_complete(folder, 60)
    assert len(slept) == 3


def test_a_process_reads_a_checkpoint_before_it_goes_on_but_of_a_sharded_one_the_sizes(tmp_path):
    folder = write(tmp_path, 3)
    content = (folder / "weights").read_bytes()
    (folder / "weights").write_bytes(bytes(len(content)))
    with pytest.raises(TrainingError, match="other bytes"):
        checkpoints.wait_until_complete(folder, 0.05)
    (folder / SHARDS).mkdir()
    checkpoints.wait_until_complete(folder, 0.05)
    (folder / "weights").write_bytes(content[:-1])
    with pytest.raises(TrainingError, match="bytes instead of"):
        checkpoints.wait_until_complete(folder, 0.05)


def test_a_process_that_never_sees_the_checkpoint_says_so(tmp_path):
    with pytest.raises(TrainingError, match=r"resumes from .*checkpoint-4, but .* need one shared folder"):
        checkpoints.wait_until_complete(tmp_path / "checkpoint-4", 0.05)
