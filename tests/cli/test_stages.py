"""dvc.yaml: a stage depends on the code it uses and on its own settings, and runs again for nothing else."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import modules_imported

# Not named by any stage: settings reach a stage through params.yaml; the others decide no result.
APART = ("settings", "errors", "paths", "identity", "services", "system")
DATA_STAGES = ("tokenizer", "documents", "needles", "questions")


@pytest.fixture(scope="module")
def stages(checkout):
    return yaml.safe_load((checkout / "dvc.yaml").read_text())["stages"]


def _is_apart(name: str) -> bool:
    return (
        name in ("refine/__init__.py", "refine/cli/progress_line.py") or name.split("/")[1].removesuffix(".py") in APART
    )


def _code(stage: dict) -> set[str]:
    """The code that a stage depends on; refine/models/sample is data."""
    return {dep for dep in stage["deps"] if dep.startswith(("refine", "flows")) and dep != "refine/models/sample"}


@pytest.mark.parametrize("name", DATA_STAGES)
def test_a_data_stage_names_just_the_code_that_it_uses(name, stages, checkout, imported_files):
    cli = ast.parse((checkout / "refine/cli/prepare.py").read_text())
    functions = {node.name: node for node in cli.body if isinstance(node, ast.FunctionDef)}
    called = {node.id for node in ast.walk(functions[name]) if isinstance(node, ast.Name)} & set(functions)
    shared = [node for node in cli.body if not isinstance(node, ast.FunctionDef)]
    start = set.union(*(modules_imported(node) for node in [*shared, *(functions[one] for one in {name} | called)]))
    assert _code(stages[name]) == imported_files(*start, apart=_is_apart) | {"refine/cli/prepare.py"}


def test_the_experiment_names_all_the_code_that_it_uses(stages, checkout, imported_files):
    code = _code(stages["experiment"])
    start = {f"flows.{path.stem}" for path in (checkout / "flows").glob("*.py")} | {"refine.cli.train"}
    used = imported_files(*start, apart=_is_apart)
    assert {file for file in used if not any(file == dep or file.startswith(f"{dep}/") for dep in code)} == set()
    assert {dep for dep in code if not any(file == dep or file.startswith(f"{dep}/") for file in used)} == set()


def test_stages_depend_on_sections_of_params_yaml_and_no_section_is_forgotten(stages, checkout):
    sections = set(yaml.safe_load((checkout / "params.yaml").read_text()))
    named = {name: set(stage["params"]) for name, stage in stages.items()}
    assert set.union(*named.values()) - {"data.recall"} == sections - {
        "data"
    }  # `refine data fetch` holds data/ against that section
    assert [named[stage] for stage in DATA_STAGES] == [
        {"tokenizer"},
        {"documents", "data.recall"},
        {"seed", "needles"},
        {"seed", "questions"},
    ]


def test_dvc_phones_nobody(checkout):
    config = (checkout / ".dvc/config").read_text()
    assert "analytics = false" in config and "check_update = false" in config


@pytest.fixture
def project(checkout, tmp_path, stages):
    """The data stages in a folder of their own, on small texts."""
    for name in set.union(*(_code(stages[stage]) for stage in DATA_STAGES)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(checkout / name, tmp_path / name)
    for name in {dep for stage in DATA_STAGES for dep in stages[stage]["deps"] if (checkout / dep).is_dir()}:
        if name.startswith("refine/"):
            shutil.copytree(checkout / name, tmp_path / name, dirs_exist_ok=True)
    values = yaml.safe_load((checkout / "params.yaml").read_text())
    values["tokenizer"] |= {"path": None, "vocabulary": 320}
    values["documents"] = {"sequence_length": 64, "validation_sequences": 4}
    values["needles"] |= {"lengths": [512], "samples": 2, "answer_tokens": 32}
    values["questions"] |= {"lengths": [900], "train_samples": 4, "validation_samples": 2, "test_samples": 2}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {name: stages[name] for name in DATA_STAGES}}))
    (tmp_path / "data").mkdir()
    for split in ("train", "validation", "second_domain", "recall"):
        text = "".join(f"KING JOHN:\nNow, say, {split} {line}, what would France with us?\n" for line in range(90))
        pq.write_table(pa.table({"id": [split], "text": [text]}), tmp_path / "data" / f"{split}.parquet")
    _dvc(tmp_path, "init", "--no-scm", "--quiet")
    shutil.copy(checkout / ".dvc/config", tmp_path / ".dvc/config")
    _dvc(tmp_path, "config", "core.no_scm", "true")
    _dvc(tmp_path, "add", "--quiet", "data")
    return tmp_path


def _dvc(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_second_repro_does_nothing_and_a_changed_setting_reruns_what_depends_on_it(project):
    assert _dvc(project, "repro").count("Running stage") == 4
    assert "up to date" in _dvc(project, "repro")
    values = yaml.safe_load((project / "params.yaml").read_text())
    values["needles"]["samples"] = 3
    values["evaluation"]["batch_size"] = 99
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    assert set(json.loads(_dvc(project, "status", "--json"))) == {"needles"}
    ran = _dvc(project, "repro")
    assert "Running stage 'needles'" in ran and ran.count("Running stage") == 1
