"""An unpacked archive is no git repository; DVC runs in it all the same once data are fetched."""

from __future__ import annotations

import shutil
import subprocess
import sys

from refine.data.corpus.dvc import allow_without_git


def dvc(folder, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=folder, capture_output=True, text=True)


def test_dvc_is_told_once_that_there_is_no_git(tmp_path, checkout):
    (tmp_path / ".dvc").mkdir()
    shutil.copy(checkout / ".dvc" / "config", tmp_path / ".dvc")
    (tmp_path / "dvc.yaml").write_text("stages: {one: {cmd: echo done}}\n")
    assert "not a git repository" in dvc(tmp_path, "repro").stderr
    said = allow_without_git(tmp_path)
    assert said and "config.local" in said and "\n" not in said
    assert dvc(tmp_path, "repro").returncode == 0
    assert allow_without_git(tmp_path) is None, "it is told already"


def test_a_clone_and_a_folder_without_dvc_are_left_alone(tmp_path):
    assert allow_without_git(tmp_path) is None and not list(tmp_path.iterdir())
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".git").write_text("gitdir: elsewhere\n")
    assert allow_without_git(tmp_path) is None and not list((tmp_path / ".dvc").iterdir())
