"""Two processes give the result of one: the same draws, the same losses, weights within rounding; and they resume."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
WORKER = Path(__file__).parent / "processes_worker.py"


def together(output: Path, *mode: str) -> int:
    """Two processes on this machine; the exit code of torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run([*torchrun, str(WORKER), str(output), *mode], capture_output=True, timeout=300).returncode


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The same run in one process."""
    output = tmp_path_factory.mktemp("alone")
    subprocess.run([sys.executable, str(WORKER), str(output), "ddp"], check=True, capture_output=True, timeout=300)
    return output


@pytest.mark.parametrize("mode", ["ddp", "sharded"])
def test_two_processes_give_the_single_process_result_with_the_same_draws_and_resume(alone, tmp_path, mode):
    """The run crashes after step 3, and its second half goes on from step 2: resume is part of what is compared."""
    assert together(tmp_path / "two", mode, "crash") != 0
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["checkpoint-2"]
    assert together(tmp_path / "two", mode) == 0
    one, two = (json.loads((path / "found.json").read_text()) for path in (alone, tmp_path / "two"))
    assert len(one["history"]) == len(two["history"]) == 6
    for left, right in zip(one["history"], two["history"], strict=True):
        assert left["train/tokens"] == right["train/tokens"] and left["train/rollouts"] == right["train/rollouts"]
        assert left["train/reward/binary/mean"] == pytest.approx(right["train/reward/binary/mean"], abs=1e-6)
        for name in ("train/loss", "train/ntp_accuracy", "train/entropy", "train/grad_norm"):
            assert right[name] == pytest.approx(left[name], rel=1e-4), name
    for name, value in one["validation"].items():
        assert two["validation"][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    weights, others = (load_file(path / "model" / "model.safetensors") for path in (alone, tmp_path / "two"))
    assert all(float((others[name] - weights[name]).norm() / weights[name].norm()) <= 1e-5 for name in weights)


@pytest.mark.parametrize(
    ("mode", "code", "said"),
    [
        ("all", 1, "error: no room for anybody"),
        ("one", 1, "error: row 7 is odd"),
        ("killed", 137, "SIGKILL ended training process 1; start the command again to resume"),
    ],
)
def test_a_failure_of_several_processes_is_one_line(mode, code, said):
    """Whichever of them it is; no traceback of the others, which lose their partner, or of torchrun."""
    command = [sys.executable, "-m", "refine.training.torchrun", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(WORKER.with_name("failing_worker.py")), mode], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr.strip().splitlines()) == (code, [said])


def test_under_fsdp_the_gradient_is_that_of_one_process(tmp_path):
    assert together(tmp_path / "fsdp", "fsdp") == 0
    found = json.loads((tmp_path / "fsdp" / "found.json").read_text())
    assert found["same_draws"] and found["worst"] <= 1e-5
