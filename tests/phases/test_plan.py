"""A plan checks and hashes, and imports nothing heavy. tests/phases/test_run.py runs the plans of start and mid,
test_post.py those of post, test_run_folder.py and this file cover prepared_data."""

from __future__ import annotations

import subprocess
import sys

import pytest

from refine import settings as settings_module
from refine.errors import DataError, ModelError
from refine.phases import mid, post, start
from refine.phases.prepared_data import Prepared


def test_planning_a_phase_imports_nothing_heavy_and_writes_nothing(params, prepared_folder, tmp_path):
    code = (
        "import sys; from refine import settings; from refine.phases import mid, run_folder, start\n"
        "from refine.phases.prepared_data import Prepared\n"
        "values, data = settings.load(sys.argv[1]), Prepared(__import__('pathlib').Path(sys.argv[2]))\n"
        "print(start.plan(values, data).title, mid.plan(values, 'sft', 'hub/model', data).title)\n"
        "print([name for name in ('torch', 'transformers', 'mlflow', 'prefect') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(params), str(prepared_folder)]
    before = sorted(tmp_path.iterdir())
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines() == ["start mid sft", "[]"]
    assert sorted(tmp_path.iterdir()) == before


def test_the_identity_holds_what_decides_the_model(params, prepared_folder):
    data = Prepared(prepared_folder)

    def identity(arm: str = "refine", *overrides: str) -> dict:
        return mid.plan(settings_module.load(params, overrides), arm, "hub/model", data).identity

    assert identity() == identity("refine", "training.mid.arms=[refine]", "evaluation.batch_size=1")
    assert identity() != identity("sft") != identity("none")
    assert identity() != identity("refine", "training.mid.objective.positions=2")
    assert identity("sft") != identity("sft", "seed=7")


def test_a_plan_refuses_missing_inputs(params, prepared_folder, tmp_path):
    values, data = settings_module.load(params), Prepared(prepared_folder)
    with pytest.raises(DataError, match="make it with `dvc repro documents`"):
        start.plan(values, Prepared(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        mid.plan(values, "refine", str(tmp_path / "empty"), data)
    with pytest.raises(DataError, match="no prompts to train on"):
        post.plan(values, "sft", "hub/model", data, [])
