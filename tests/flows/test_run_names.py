"""The name of a run begins with the settings that differ from the committed ones, with their section."""

from __future__ import annotations

import subprocess

import yaml

from flows.run_names import LENGTH, titled, what_differs
from refine.settings import load


def commit(folder) -> None:
    for command in ("init -q", "add -A", "-c user.name=a -c user.email=a@b commit -qm c"):
        subprocess.run(["git", *command.split()], cwd=folder, check=True)


def test_what_differs_from_the_commit_comes_first(workplace):
    commit(workplace)
    file = workplace / "params.yaml"
    assert what_differs(load(file), str(file), []) == []
    values = yaml.safe_load(file.read_text())
    values["training"]["mid"]["steps"] = 8  # as `dvc exp run -S training.mid.steps=8` changes the file
    file.write_text(yaml.safe_dump(values))
    overrides = ["training.mid.objective.reward=hybrid", "seed=1"]  # seed is 1 already
    found = what_differs(load(file, overrides), str(file), overrides)
    assert found == ["mid.steps=8", "mid.objective.reward=hybrid"]
    assert titled("none, sft", found) == "mid.steps=8, mid.objective.reward=hybrid: none, sft"


def test_without_a_commit_the_overrides_name_the_run(workplace):
    overrides = ["training.mid.steps=8"]
    assert what_differs(load("params.yaml", overrides), "params.yaml", overrides) == ["mid.steps=8"]
    (workplace / "params.yaml").rename(workplace / "kept.yaml")
    (workplace / "params.yaml").write_text("sead: 1")  # of another version
    commit(workplace)
    assert what_differs(load("kept.yaml", overrides), "params.yaml", overrides) == ["mid.steps=8"]


def test_many_or_long_values_leave_room_for_the_title():
    assert titled("none", [f"mid.s{n}={n}" for n in range(9)]) == "mid.s0=0, mid.s1=1, mid.s2=2, mid.s3=3, 5 more: none"
    assert len(titled("none", ["x" * 300])) == LENGTH
