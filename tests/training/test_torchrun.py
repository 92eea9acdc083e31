"""Two processes give the result of one (draws, losses, weights within rounding), resume, and fail in one line."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from refine.paths import SHARDS
from refine.training import checkpoints, torchrun

WORKER = Path(__file__).parent / "processes_worker.py"


def together(output: Path, *mode: str) -> int:
    """Run two processes on this machine. Returns the exit code of torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run([*command, str(WORKER), str(output), *mode], capture_output=True, timeout=300).returncode


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The same run in one process."""
    output = tmp_path_factory.mktemp("alone")
    subprocess.run([sys.executable, str(WORKER), str(output), "ddp"], check=True, capture_output=True, timeout=300)
    return output


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "sharded"])
def test_two_processes_give_the_single_process_result_with_the_same_draws_and_resume(alone, tmp_path, mode):
    """The run crashes after step 3 and resumes from step 2, so that the comparison includes a resume."""
    assert together(tmp_path / "two", mode, "crash") != 0
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["checkpoint-2"]
    assert together(tmp_path / "two", mode, "counted") == 0
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
    # of step 3 and the counts of step 4, and of step 5 and the counts of step 6; the others save a checkpoint
    counted = json.loads((tmp_path / "two" / "collectives.json").read_text())
    for step in ("3", "5"):
        beside = {name: count for name, count in counted[step].items() if not name.startswith("torch/")}
        beside.pop("accelerate: allreduce", None)  # DDP's gradients
        assert beside == {"refine: allgather": 2, "transformers: allgather": 1}, counted[step]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "code", "line"),
    [
        ("all", 1, "error: no room for anybody"),
        ("one", 1, "error: row 7 is odd"),
        ("killed", 137, "SIGKILL ended training process 1; start the command again to resume"),
    ],
)
def test_a_failure_of_several_processes_is_one_line(mode, code, line):
    """From the process at fault, without a traceback of torchrun or of the processes that lose their partner."""
    command = [sys.executable, "-m", "refine.training.torchrun", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(WORKER.with_name("failing_worker.py")), mode], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr.strip().splitlines()) == (code, [line])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "sharded"])
def test_frozen_attention_stays_in_two_processes_as_in_one(tmp_path, mode):
    subprocess.run([sys.executable, str(WORKER), str(tmp_path / "one"), "ddp", "frozen"], check=True, timeout=300)
    assert together(tmp_path / "two", mode, "frozen", "crash") != 0
    assert together(tmp_path / "two", mode, "frozen") == 0
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    first = dict(_worker().model(_worker().HYBRID).named_parameters())
    for name, weight in one.items():
        assert float((two[name] - weight).norm()) <= 1e-5 * float(weight.norm()), name
        assert torch.equal(two[name], first[name].detach()) is (".self_attn." in name), name


@pytest.mark.slow
def test_arm_none_is_shared_before_it_is_validated_and_stays_as_it_is(tmp_path):
    """Without training nothing else would put a model of FSDP on its devices."""
    subprocess.run([sys.executable, str(WORKER), str(tmp_path / "one"), "ddp", "none"], check=True, timeout=300)
    assert together(tmp_path / "two", "sharded", "none") == 0
    one, two = (json.loads((tmp_path / name / "found.json").read_text())["validation"] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-5)
    weights, others = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    assert weights.keys() == others.keys()
    assert all(torch.equal(others[name], weight) for name, weight in weights.items())


@pytest.mark.slow
@pytest.mark.parametrize("what", ["marks", "lact"])
@pytest.mark.parametrize("mode", ["ddp", "sharded"])
def test_a_process_whose_rows_have_no_mark_or_no_whole_chunk_keeps_step_with_the_other(tmp_path, mode, what):
    subprocess.run([sys.executable, str(WORKER), str(tmp_path / "one"), "ddp", what], check=True, timeout=300)
    assert together(tmp_path / "two", mode, what) == 0
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    for name, weight in one.items():
        assert float((two[name] - weight).norm()) <= 1e-5 * float(weight.norm()), name


@pytest.mark.slow
@pytest.mark.parametrize("mode", [("ddp",), ("sharded",), ("sharded", "bf16")], ids=" ".join)
def test_adapters_train_in_two_processes_as_in_one(tmp_path, mode):
    """The output layer, which accelerate shards apart when the model has adapters, is used without being called."""
    alone = [sys.executable, str(WORKER), str(tmp_path / "one"), "ddp", "adapters", *mode[1:]]
    subprocess.run(alone, check=True, timeout=300)
    assert together(tmp_path / "two", *mode, "adapters", "crash") != 0
    assert together(tmp_path / "two", *mode, "adapters") == 0
    one, two = (load_file(tmp_path / name / "model" / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    near = 0.05 if "bf16" in mode else 1e-5
    for name, weight in one.items():
        assert float((two[name] - weight).norm()) <= near * float(weight.norm()), name


@pytest.mark.slow
def test_a_process_that_dies_between_shards_costs_a_checkpoint_and_no_bit(tmp_path):
    """Then one process goes on from what two have written, to their result within rounding."""
    whole, torn, one = (tmp_path / name for name in ("whole", "torn", "one"))
    assert together(whole, "sharded", "shards") == 0
    assert together(torn, "sharded", "shards", "torn") != 0
    assert [step for step, _ in checkpoints.complete(torn)] == [2] and not (torn / "checkpoint-4").exists()
    assert together(torn, "sharded", "shards") == 0
    first, second = ((path / "model" / "model.safetensors").read_bytes() for path in (whole, torn))
    assert first == second
    shutil.copytree(whole / "checkpoint-4", one / "checkpoint-4")
    subprocess.run([sys.executable, str(WORKER), str(one), "ddp"], check=True, capture_output=True, timeout=300)
    weights, others = (load_file(path / "model" / "model.safetensors") for path in (whole, one))
    assert all(float((others[name] - weights[name]).norm() / weights[name].norm()) <= 1e-5 for name in weights)
    histories = [json.loads((path / "found.json").read_text())["history"] for path in (whole, one)]
    assert [row["train/rollouts"] for row in histories[0]] == [row["train/rollouts"] for row in histories[1]]
    files = {path.suffix for path in (whole / "checkpoint-4" / SHARDS).iterdir()}
    assert files == {".safetensors", ".json"}, "no pickles"


def _worker() -> Any:
    spec = importlib.util.spec_from_file_location("processes_worker", WORKER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_under_fsdp_the_gradient_is_that_of_one_process(tmp_path):
    assert together(tmp_path / "fsdp", "fsdp") == 0
    found = json.loads((tmp_path / "fsdp" / "found.json").read_text())
    assert len(found) == 32
    for kind, (same, worst) in found.items():
        bound = 0.2 if "moe" in kind else 0.1  # a rounding sends a token to another expert
        assert same and worst <= (bound if "bfloat16" in kind else 1e-4), kind


@pytest.mark.slow
def test_sharded_in_16_bits_losses_are_those_of_one_process_and_not_rounded(tmp_path):
    """bfloat16 rounds a loss of 4 to steps of 0.016."""
    one, two = tmp_path / "one", tmp_path / "two"
    subprocess.run([sys.executable, str(WORKER), str(one), "ddp", "bf16"], check=True, timeout=300)
    assert together(two, "sharded", "bf16") == 0
    alone, sharded = (json.loads((path / "found.json").read_text())["history"] for path in (one, two))
    assert len(alone) == len(sharded) == 6
    for left, right in zip(alone, sharded, strict=True):
        for name in ("train/loss", "train/entropy"):
            assert right[name] == pytest.approx(left[name], rel=3e-4), name
        assert right["train/grad_norm"] == pytest.approx(left["train/grad_norm"], rel=0.1)


@pytest.mark.parametrize(
    ("rank", "in_one_line", "seconds"),
    [
        (None, True, []),
        ("0", True, []),
        ("1", True, [torchrun.PATIENCE / 2]),
        ("0", False, [torchrun.PATIENCE]),
        ("1", False, [torchrun.PATIENCE]),
    ],
)
def test_a_failing_process_waits_until_the_one_that_prints_has_printed(monkeypatch, rank, in_one_line, seconds):
    slept: list[float] = []
    monkeypatch.setattr(torchrun.time, "sleep", slept.append)
    for name, value in (("RANK", rank), ("WORLD_SIZE", rank and "2")):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    torchrun.wait_for_first_error(in_one_line)
    assert slept == seconds


def test_a_process_becomes_torchrun_once(monkeypatch):
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, command: started.append(command))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torchrun.become(1, ["train", "mid"])
    assert not started, "one process needs no torchrun"
    torchrun.become(2, ["train", "mid"])
    (command,) = started
    assert command[command.index("--nproc-per-node") + 1] == "2" and command[-3:] == ["refine.cli.main", "train", "mid"]
    assert torchrun.is_first()
    monkeypatch.setenv("RANK", "1")
    torchrun.become(2, ["train", "mid"])
    assert len(started) == 1, "it runs under torchrun already"
    assert not torchrun.is_first()
