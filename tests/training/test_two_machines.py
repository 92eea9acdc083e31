"""torchrun on two machines, as docs/deployment.md says it: the result is that of one process, also after one machine
was lost and came back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.fixtures.machines import Machine

pytestmark = pytest.mark.slow
WORKER = Path(__file__).parent / "processes_worker.py"


def node(machine: Machine, *worker: str, restarts: int = 0) -> subprocess.Popen[str]:
    """Start torchrun there."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "node0:29500", "--rdzv-id", "refine"]
    environment = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # a machine that comes back hangs without
    return machine.start(*torchrun, *meeting, "--max-restarts", str(restarts), *worker, env=environment)


def ended(processes: list[subprocess.Popen[str]]) -> list[int]:
    """Their exit codes; what a failing one printed is shown."""
    printed = [process.communicate(timeout=300)[0] for process in processes]
    for process, text in zip(processes, printed, strict=True):
        if process.returncode:
            print(text[-3000:])
    return [process.returncode for process in processes]


def until(condition, what: str, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} s: {what}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The same run in one process."""
    output = tmp_path_factory.mktemp("alone")
    subprocess.run([sys.executable, str(WORKER), str(output), "ddp"], check=True, capture_output=True, timeout=300)
    return output


def compare(one: Path, two: Path) -> None:
    """Losses to rounding, the same draws, and the same weights to rounding."""
    left, right = (json.loads((path / "found.json").read_text())["history"] for path in (one, two))
    assert [row["train/rollouts"] for row in left] == [row["train/rollouts"] for row in right]
    assert [row["train/loss"] for row in left] == pytest.approx([row["train/loss"] for row in right], rel=1e-4)
    weights, others = (load_file(path / "model" / "model.safetensors") for path in (one, two))
    assert all(float((others[name] - weights[name]).norm() / weights[name].norm()) <= 1e-5 for name in weights)


@pytest.mark.parametrize("mode", ["ddp", "sharded"])
def test_the_result_of_two_machines_is_that_of_one_process(alone, machines, tmp_path, mode):
    assert ended([node(machine, str(WORKER), str(tmp_path / "two"), mode) for machine in machines]) == [0, 0]
    compare(alone, tmp_path / "two")


def test_a_machine_that_is_lost_and_comes_back_goes_on_from_the_last_checkpoint(alone, machines, tmp_path):
    """node1 stops within step 3 and dies. node0 waits for it; node1 is started again, and both go on from step 2."""
    output = tmp_path / "two"
    first, second = (node(machine, str(WORKER), str(output), "ddp", "stuck", restarts=2) for machine in machines)
    until((output / "stuck").exists, "node1 was to reach step 3")
    machines[1].kill()
    assert second.wait(timeout=60) != 0 and first.poll() is None, "node0 waits for node1"
    assert not (output / "found.json").exists() and (output / "checkpoint-2").is_dir()
    assert ended([node(machines[1], str(WORKER), str(output), "ddp", "stuck", restarts=2), first]) == [0, 0]
    compare(alone, output)


def test_without_restarts_a_lost_machine_ends_the_run_and_a_second_start_goes_on(alone, machines, tmp_path):
    output = tmp_path / "two"
    first, _ = (node(machine, str(WORKER), str(output), "sharded", "stuck") for machine in machines)
    until((output / "stuck").exists, "node1 was to reach step 3")
    machines[1].kill()
    assert first.wait(timeout=120) != 0, "node0 trains on alone"
    assert ended([node(machine, str(WORKER), str(output), "sharded", "stuck") for machine in machines]) == [0, 0]
    compare(alone, output)
    assert os.listdir(output / "model")
